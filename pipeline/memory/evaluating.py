"""What an encoder is worth: how much of a text its slots hold, by kind, length and ratio, and what a model that reads
them knows of how the text goes on.

Section 3 of the paper: BLEU-4 and exact match of what is repeated (3.2.1), perplexity of continuations (table 6).
Contexts longer than the spans of the encoder's training are cut into such spans, whose slots are read together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.batching import run_packed
from pipeline.evaluation.bootstrap import Interval, interval
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.continuing import Continuation, continuation
from pipeline.memory.kinds import GENERATED, Kind
from pipeline.memory.measure import Measuring, Parts, encoded, plainly
from pipeline.memory.ragged import pass_tokens
from pipeline.memory.spans import cut
from pipeline.models import ModelError
from schemas.memory import slots_of

TIMED = 5
"""Runs of which a latency is the median, behind one to warm up."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Contexts of ``tokens`` each at every one of ``ratios`` tokens a slot, cut into spans of ``span`` tokens at most:
    ``rows`` of each kind; ``continued`` tokens behind them; ``half``: passes are autocast to bfloat16."""

    tokens: tuple[int, ...]
    ratios: tuple[float, ...]
    span: int
    rows: int
    continued: int
    batch_tokens: int
    half: bool
    seed: int = 0

    def cuts(self) -> list[tuple[int, Parts]]:
        """Every length with every ratio: (tokens, the spans as (tokens, slots))."""
        return [
            (size, tuple((one, slots_of(one, ratio)) for one in cut(size, self.span)))
            for size in self.tokens
            for ratio in self.ratios
        ]


@dataclass(frozen=True, slots=True)
class Repeated:
    """What comes back of ``rows`` contexts; ``bleu4`` is None without sacrebleu."""

    kind: str
    tokens: int
    slots: int
    rows: int
    nats: Interval
    agreement: Interval
    bleu4: Interval | None
    prefix: Interval


@dataclass(frozen=True, slots=True)
class Continued:
    """Perplexities of what follows ``rows`` contexts behind nothing, all of it, its last tokens, its slots."""

    kind: str
    tokens: int
    slots: int
    rows: int
    none: float
    full: float
    tail: float
    behind_slots: float

    @property
    def kept(self) -> float | None:
        """The share of what the context is worth that its slots keep; None where it is worth nothing."""
        return (self.none - self.behind_slots) / (self.none - self.full) if self.none > self.full else None


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds for one context: to encode it, to read its slots, and to read its text."""

    tokens: int
    slots: int
    encode: float
    read_slots: float
    read_text: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All of it. ``short``: kinds of which no text was long enough, and for how many tokens."""

    repeated: list[Repeated]
    continued: list[Continued]
    latencies: list[Latency]
    short: list[tuple[str, int]]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        said = [{**asdict(one), "kept": one.kept} for one in self.continued]
        return {**asdict(self), "continued": said}


def check(asked: Asked, window: int | None, most: int) -> None:
    """Raise ``ModelError`` for contexts that the model cannot read, with what stands around them, and for spans of more
    slots than the ``most`` that the encoder makes."""
    for size, parts in asked.cuts():
        for tokens, slots in parts:
            if slots > most:
                raise ModelError(
                    f"a span of {tokens} tokens takes {slots} slots, and its encoder makes {most} at most: raise ratio"
                )
        places = size + max(sum(slots for _, slots in parts) + 1, asked.continued)
        if window is not None and places > window:
            raise ModelError(
                f"contexts of {size} tokens take {places} places with their slots and what follows, and the model "
                f"reads {window} at most: lower --tokens or --continued"
            )


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
                    _seconds(partial(encoded, self.coder, ids, parts), tag.is_cuda),
                    _seconds(partial(self.coder.states, slots, tag, ids[:, :1]), tag.is_cuda),
                    _seconds(partial(self.coder.text_states, ids), tag.is_cuda),
                )
            yield Latency(size, slots.shape[1], *times)


def _seconds(work: Callable[[], Any], cuda: bool) -> float:
    """The median of some runs."""
    found = []
    for _ in range(TIMED + 1):
        began = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return float(np.median(found[1:]))
