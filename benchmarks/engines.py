"""Our compression engines as the speed benchmarks run them: prompts in, texts out; no queue, database or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from pipeline.compression.engine import Compressed, Made
from pipeline.compression.prompt import Copied, Prompt, Source
from pipeline.compression.registry import Method, Passed, Ranking
from pipeline.compression.stage import Compress
from pipeline.passes.packed import Pack, Step
from pipeline.passes.wide import Wide
from pipeline.stages import Refusal, Run
from schemas.compress import CompressSpec
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.reference import ReferenceOptions, ReferenceSpec

if TYPE_CHECKING:
    from pipeline.compression.tokens import Tokenising
    from pipeline.models import ModelPool

Texts = list[str | None]
"""The compressed prompts, in order; None where a prompt was refused."""

Compressor = Callable[[Sequence[PromptParts], Passed], Texts]
"""Compresses prompts and reports the tokens of every forward pass."""


def staged(pool: ModelPool, spec: CompressSpec, target: str) -> Compressor:
    """What the compress stage with ``spec`` does to documents, budgets counted by the model ``target``."""
    stage = Compress(spec, TargetSpec(model=target))

    def compress(prompts: Sequence[PromptParts], passed: Passed) -> Texts:
        engine = stage.engine(pool)
        engine = replace(engine, method=_Telling(engine.method, passed))
        made: dict[int, Made] = {}
        for batch in engine.run([Source(prompt) for prompt in prompts], lambda tokens: None):
            made.update(zip(batch.places, batch.made, strict=True))
        return [_text(made[place]) for place in range(len(prompts))]

    return compress


def reference(
    pool: ModelPool, model: str, dtype: str, batch_tokens: int, options: dict[str, Any], device: str = "auto"
) -> Compressor:
    """What the compress stage of reference fidelity does, with the library's own ``options``.

    Nothing is remembered from one call to the next: no run lives on the scores of another.
    """
    from pipeline.compression.reference.outcomes import outcomes_of

    spec = ReferenceSpec(
        kind="compress", fidelity="reference", model=model, dtype=dtype, device=device, batch_tokens=batch_tokens,
        options=ReferenceOptions(**options),
    )  # fmt: skip

    def compress(prompts: Sequence[PromptParts], passed: Passed) -> Texts:
        documents = [Document(seq, str(seq), parts, "") for seq, parts in enumerate(prompts)]
        outcomes = outcomes_of(spec, TargetSpec(model=model), documents, Run(pool), passed)
        return [None if isinstance(one, Refusal) else str(one.fields["compressed"]) for one in outcomes]

    return compress


@dataclass(frozen=True, slots=True)
class _Telling:
    """A method whose forward passes are told to ``told``: the engine reports no token twice, however often scored."""

    method: Method
    told: Passed

    @property
    def tokenising(self) -> Tokenising:
        return self.method.tokenising

    @property
    def abreast(self) -> int:
        return self.method.abreast

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        def both(tokens: int) -> None:
            self.told(tokens)
            passed(tokens)

        return self.method.score(prompts, both)


def _text(made: Made) -> str | None:
    if isinstance(made, Compressed):
        return made.fitted.text
    return made.text if isinstance(made, Copied) else None


@contextmanager
def watched(trunk: Any) -> Iterator[list[int]]:
    """The tokens (padding included) of each pass of ``trunk``, a module that takes ``input_ids``, or that is read by
    kernels of our own.

    A graph that is replayed without its module passes by uncounted.
    """
    calls: list[int] = []
    read = Wide.read

    def count_wide(wide: Wide, states: torch.Tensor, at: torch.Tensor, pack: Pack | Step) -> torch.Tensor:
        if wide.trunk is trunk:
            calls.append(len(states))
        return read(wide, states, at, pack)

    def count(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = arguments[0] if arguments else named.get("input_ids")
        calls.append(ids.numel() if ids is not None else 0)  # from several threads: a list loses none

    handle = trunk.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with mock.patch.object(Wide, "read", count_wide):
            yield calls
    finally:
        handle.remove()
