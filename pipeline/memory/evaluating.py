"""What an encoder is worth: how much of a text its slots hold, by kind, length and ratio, and what a model that reads
them knows of how the text goes on.

Section 3 of the paper: BLEU-4 and exact match of what is repeated (3.2.1), perplexity of continuations (table 6).
Contexts longer than the spans of the encoder's training are cut into such spans, whose slots are read together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.batching import run_packed
from pipeline.evaluation.bootstrap import interval
from pipeline.generation.timing import timed
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.continuing import Continuation, continuation
from pipeline.memory.evaluated import Asked, Continued, Evaluation, Latency, Repeated
from pipeline.memory.kinds import GENERATED, Kind
from pipeline.memory.measure import Measuring, Parts, encoded, plainly
from pipeline.memory.ragged import pass_tokens

TIMED = 5
"""Runs of which a latency is the median, behind one to warm up."""


def evaluate(
    coder: Autoencoder, tokenizer: Any, kinds: Sequence[Kind], asked: Asked, told: Callable[[int, int], None]
) -> Evaluation:
    """``told`` of how many measurements are done, of how many."""
    return _Evaluating(coder, tokenizer, kinds, asked).run(told)


@dataclass(frozen=True, slots=True)
class _Evaluating:
    coder: Autoencoder
    tokenizer: Any
    kinds: Sequence[Kind]
    asked: Asked

    def run(self, told: Callable[[int, int], None]) -> Evaluation:
        cuts = self.asked.cuts()
        found = Evaluation([], [], [], [])
        every = [(kind, size, parts) for kind in self.kinds for size, parts in cuts]
        for number, (kind, size, parts) in enumerate(every):
            told(number, len(every))
            if (spans := self._spans(kind, size)) is None:
                found.short.append((kind.name, size))
                continue
            found.repeated.append(self._repeated(kind, spans, parts))
            more = None if kind.name in GENERATED else self._spans(kind, size + self.asked.continued)
            if more is not None:
                found.continued.append(self._continued(kind, more, parts))
        found.latencies.extend(self._latencies(cuts))
        told(len(every), len(every))
        return found

    def _spans(self, kind: Kind, size: int) -> torch.Tensor | None:
        drawn = kind.spans(self.asked.rows, size, self.asked.seed)
        return None if drawn is None else torch.from_numpy(drawn).to(self.coder.tags.device)

    def _repeated(self, kind: Kind, spans: torch.Tensor, parts: Parts) -> Repeated:
        slots, asked = sum(many for _, many in parts), self.asked
        measuring = Measuring(self.coder, self.tokenizer, spans, parts, asked.batch_tokens, asked.half)
        rows = measuring.measure(len(spans))
        columns = [interval(np.array(one, np.float64)[:, None]) for one in zip(*rows, strict=True)]
        nats, agreement, bleu4, prefix = columns
        known = None if math.isnan(bleu4.value) else bleu4
        return Repeated(kind.name, spans.shape[1], slots, len(spans), nats, agreement, known, prefix)

    def _continued(self, kind: Kind, texts: torch.Tensor, parts: Parts) -> Continued:
        size = texts.shape[1] - self.asked.continued

        def some(numbers: list[int]) -> list[Continuation]:
            return continuation(self.coder, texts[numbers, :size], texts[numbers, size:], parts)

        most = pass_tokens(self.asked.batch_tokens, texts.device)
        with plainly(self.coder.tags.device, self.asked.half):
            rows = run_packed([texts.shape[1]] * len(texts), most, some)
        perplexities = np.exp(np.array(rows, np.float64).mean(0)).tolist()
        return Continued(kind.name, size, sum(many for _, many in parts), len(texts), *perplexities)

    def _latencies(self, cuts: Sequence[tuple[int, Parts]]) -> Iterator[Latency]:
        tag = torch.full((1,), TAGS.index("AE"), device=self.coder.tags.device)
        for size, parts in cuts:
            ids = torch.arange(size, device=tag.device)[None] % 50 + 3
            with plainly(self.coder.tags.device, self.asked.half):
                slots = encoded(self.coder, ids, parts)
                times = (
                    _seconds(partial(encoded, self.coder, ids, parts), tag.device),
                    _seconds(partial(self.coder.states, slots, tag, ids[:, :1]), tag.device),
                    _seconds(partial(self.coder.text_states, ids), tag.device),
                )
            yield Latency(size, slots.shape[1], *times)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of some runs."""
    return float(np.median([timed(work, device)[1] for _ in range(TIMED + 1)][1:]))
