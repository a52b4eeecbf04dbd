"""What an encoder is worth: how much of a text its slots hold, by kind, length and ratio, and what a model that reads
them knows of how the text goes on.

Section 3 of the paper: BLEU-4 and exact match of what is repeated (3.2.1), perplexity of continuations (table 6).
Contexts longer than the spans of the encoder's training are cut into such spans, whose slots are read together. Slots
are what comes out of the slot store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.batching import run_packed
from pipeline.evaluation.bootstrap import Floats, Interval, difference, interval, mean
from pipeline.generation.timing import timed
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.continuing import Continuation, continuation
from pipeline.memory.evaluated import Asked, Continued, Evaluation, Latency, Repeated, Stored
from pipeline.memory.form import Form
from pipeline.memory.kinds import GENERATED, Kind
from pipeline.memory.measure import Measuring, encoded, plainly
from pipeline.memory.ragged import pass_tokens
from pipeline.memory.spans import Parts
from pipeline.memory.storing import Storing

TIMED = 5
"""Runs of which a latency is the median, behind one to warm up."""

What = tuple[str, int, int, int]
"""Kind, tokens, slots and rows of what is repeated."""

Told = Callable[[int, int, str], None]
"""(parts measured, of how many, what is next); called again and again meanwhile, and may raise."""

Alive = Callable[[], None]
"""Called again and again while a part is measured, and may raise."""


class Part(NamedTuple):
    """What is measured next, and what does it: a call that returns all that it found."""

    what: str
    measured: Callable[[Alive], Evaluation]


def evaluate(
    coder: Autoencoder, tokenizer: Any, kinds: Sequence[Kind], asked: Asked, told: Told
) -> Iterator[Evaluation]:
    """What is asked of an encoder, as far as it is measured: before the first part, and after each, when that is
    complete. The last is all of it."""
    total = sum(1 for _ in _parts(coder, tokenizer, kinds, asked))
    short = [(kind.name, size) for kind in kinds for size in asked.tokens if not kind.holds(size)]
    steps, continuations = asked.fit.steps, asked.fit.continuations
    found = Evaluation(short=short, refine=steps, continuations=continuations, starts=asked.starts, total=total)
    yield found
    for part in _parts(coder, tokenizer, kinds, asked):
        found = found.plus(part.measured(partial(told, found.measured, total, part.what)))
        yield found


def _parts(coder: Autoencoder, tokenizer: Any, kinds: Sequence[Kind], asked: Asked) -> Iterator[Part]:
    """Kind by kind, in order; nothing is done before a part is called."""
    for kind in kinds:
        for size, parts in asked.cuts():
            if kind.holds(size):
                yield from _Contexts(coder, tokenizer, asked, kind, size, parts).parts()
    for size, parts in asked.cuts():
        yield Part("seconds for one context", partial(_latency, coder, asked.half, size, parts))


@dataclass(frozen=True, slots=True)
class _Contexts:
    """Contexts of a kind, read as ``cut``. ``known``: their slots, made once for all forms;
    ``scores``: a ``Measure`` of each context, ``[rows, 4]``, from each form so far."""

    coder: Autoencoder
    tokenizer: Any
    asked: Asked
    kind: Kind
    size: int
    cut: Parts
    known: dict[bytes, torch.Tensor] = field(default_factory=dict)
    scores: list[Floats] = field(default_factory=list)

    def parts(self) -> Iterator[Part]:
        """What is repeated, form by form, then what follows."""
        what = f"{self.kind.name}, {self.size} tokens"
        for form in self.asked.forms:
            yield Part(f"{what}, {form.name}", partial(self._repeated, form))
        if self.kind.name not in GENERATED and self.kind.holds(self.size + self.asked.continued):
            yield Part(f"{what}, what follows", self._continued)

    def _repeated(self, form: Form, alive: Alive) -> Evaluation:
        asked, spans, storing = self.asked, self._drawn(self.size), Storing(self.coder, form)
        passes = Measuring(
            self.coder, self.tokenizer, spans, self.cut, asked.batch_tokens, asked.half, alive,
            kept=storing, fit=asked.fit, known=self.known,
        )  # fmt: skip
        self.scores.append(np.array(passes.measure(len(spans)), np.float64))
        what = self.kind.name, self.size, self._slots, len(spans)
        repeated = [_repeated(what, self.scores[0])] if len(self.scores) == 1 else []
        return Evaluation(repeated=repeated, stored=[_stored(what, storing, self.scores)])

    def _continued(self, alive: Alive) -> Evaluation:
        texts = self._drawn(self.size + self.asked.continued)

        def some(numbers: list[int]) -> list[Continuation]:
            alive()
            both = texts[numbers, : self.size], texts[numbers, self.size :]
            return continuation(self.coder, *both, self.cut, self.asked.fit, alive)

        most = pass_tokens(self.asked.batch_tokens, texts.device)
        with plainly(texts.device, self.asked.half):
            more = sum(self.asked.fit.places(many) for _, many in self.cut)
            rows = run_packed([texts.shape[1] + more] * len(texts), most, some)
        perplexities = np.exp(np.array(rows, np.float64).mean(0)).tolist()
        return Evaluation(continued=[Continued(self.kind.name, self.size, self._slots, len(texts), *perplexities)])

    def _drawn(self, size: int) -> torch.Tensor:
        drawn = self.kind.spans(self.asked.rows, size, self.asked.seed, self.asked.starts)
        return torch.from_numpy(drawn).to(self.coder.tags.device)

    @property
    def _slots(self) -> int:
        return sum(many for _, many in self.cut)


def _latency(coder: Autoencoder, half: bool, size: int, parts: Parts, alive: Alive) -> Evaluation:
    alive()
    tag = torch.full((1,), TAGS.index("AE"), device=coder.tags.device)
    ids = torch.arange(size, device=tag.device)[None] % 50 + 3
    with plainly(tag.device, half):
        slots = encoded(coder, ids, parts)
        times = (
            _seconds(partial(encoded, coder, ids, parts), tag.device),
            _seconds(partial(coder.states, slots, tag, ids[:, :1]), tag.device),
            _seconds(partial(coder.text_states, ids), tag.device),
        )
    return Evaluation(latencies=[Latency(size, slots.shape[1], *times)])


def _repeated(what: What, rows: Floats) -> Repeated:
    nats, agreement, bleu4, prefix = (interval(one[:, None]) for one in rows.T)
    return Repeated(*what, nats, agreement, _known(bleu4), prefix)


def _stored(what: What, storing: Storing, scores: Sequence[Floats]) -> Stored:
    """From the last of the ``scores``, beside the first."""
    first, rows = scores[0], scores[-1]
    nats, _, bleu4, prefix = (interval(column[:, None]) for column in rows.T)
    pairs = np.stack([rows[:, 2], first[:, 2]], 1)
    apart = _known(interval(pairs, difference(mean))) if len(scores) > 1 else None
    return Stored(*what, storing.form.name, storing.bytes, storing.loss, nats, _known(bleu4), apart, prefix)


def _known(one: Interval) -> Interval | None:
    return None if math.isnan(one.value) else one


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of some runs."""
    return float(np.median([timed(work, device)[1] for _ in range(TIMED + 1)][1:]))
