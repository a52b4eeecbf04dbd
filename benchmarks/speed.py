"""One measurement of one of our engines, as the speed benchmarks report it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.engines import Compressor, Texts, watched
from benchmarks.measuring import Spread, kernel_seconds, timed
from schemas.document import PromptParts

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each text."""

PROFILED = 1024
"""Most prompts in a profiled run: a profile holds every kernel of it."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds for ``origin_tokens`` in, and for ``own_tokens``: those of the scorer's own tokenizer.

    Per own token in, ``scored`` are tokens whose surprisal or label was asked for, ``passed`` tokens the trunk was
    given, padding included (None where graphs are replayed: nobody counts there). ``kept`` is the mean of own tokens
    out, ``busy`` the share of the wall time in which the GPU ran a kernel, over the first ``PROFILED`` prompts.
    ``cpu_seconds`` are this process's, of all its threads, in a run: what is left to compare on a CPU that others use.
    """

    prompts: int
    origin_tokens: int
    own_tokens: int
    seconds: Spread
    tokens_per_second: float
    cpu_seconds: float
    scored: float
    passed: float | None
    kept: float
    refused: int
    busy: float | None


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures engines on ``device`` with the model whose trunk is ``trunk`` and whose tokens ``own`` counts."""

    device: torch.device
    trunk: Any
    own: Count
    runs: int
    warm_up: int

    def speed(self, compress: Compressor, prompts: Sequence[PromptParts], origin: Sequence[int]) -> tuple[Speed, Texts]:
        """The figures, and the texts. ``origin`` counts the tokens of each prompt; refused prompts do not count."""
        compress(prompts[: self.warm_up], lambda tokens: None)
        scored: list[int] = []
        begun = time.process_time()
        with watched(self.trunk) as passed:
            texts, seconds = timed(lambda: compress(prompts, scored.append), self.runs, self.device)
        cpu = time.process_time() - begun
        made = [text for text in texts if text is not None]
        tokens = sum(count for count, text in zip(origin, texts, strict=True) if text is not None)
        own = sum(self.own([prompt.render() for prompt in prompts]))
        return Speed(
            prompts=len(prompts),
            origin_tokens=tokens,
            own_tokens=own,
            seconds=seconds,
            tokens_per_second=tokens / seconds.median,
            cpu_seconds=cpu / self.runs,
            scored=sum(scored) / self.runs / own,
            passed=sum(passed) / self.runs / own if passed else None,
            kept=sum(self.own(made)) / max(1, len(made)),
            refused=len(texts) - len(made),
            busy=self._busy(compress, prompts, seconds),
        ), texts  # fmt: skip

    def _busy(self, compress: Compressor, prompts: Sequence[PromptParts], seconds: Spread) -> float | None:
        some = prompts[:PROFILED]

        def work() -> Texts:
            return compress(some, lambda tokens: None)

        busy = kernel_seconds(work, self.device)
        if busy is None:
            return None
        whole = seconds if len(some) == len(prompts) else timed(work, self.runs, self.device)[1]
        return busy / whole.median


def counter(tokenizer: Any) -> Count:
    """Counts tokens by a fast tokenizer, special tokens left out."""
    backend = tokenizer.backend_tokenizer

    def count(texts: Sequence[str]) -> list[int]:
        return [len(one.ids) for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count
