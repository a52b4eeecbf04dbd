"""What an encoder is worth: how much of a text its slots hold, by kind, length and ratio, and what a model that reads
them knows of how the text goes on.

Section 3 of the paper: BLEU-4 and exact match of what is repeated (3.2.1), perplexity of continuations (table 6).
Contexts longer than the spans of the encoder's training are cut into such spans, whose slots are read together. Slots
are what comes out of the slot store.
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
from pipeline.evaluation.bootstrap import Floats, Interval, difference, interval, mean
from pipeline.generation.timing import timed
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.continuing import Continuation, continuation
from pipeline.memory.evaluated import Asked, Continued, Evaluation, Latency, Repeated, Stored
from pipeline.memory.kinds import GENERATED, Kind
from pipeline.memory.measure import Measuring, Parts, encoded, plainly
from pipeline.memory.ragged import pass_tokens
from pipeline.memory.storing import Storing

TIMED = 5
"""Runs of which a latency is the median, behind one to warm up."""

What = tuple[str, int, int, int]
"""Kind, tokens, slots and rows of what is repeated."""

Told = Callable[[int, int, str], None]
"""(measurements done, of how many, what is next); called again and again meanwhile, and may raise."""

Back = tuple[Storing, Floats]
"""How slots were stored, and a ``Measure`` of each context, ``[rows, 4]``."""


def evaluate(coder: Autoencoder, tokenizer: Any, kinds: Sequence[Kind], asked: Asked, told: Told) -> Evaluation:
    """What is asked of an encoder, kind by kind."""
    return _Evaluating(coder, tokenizer, kinds, asked).run(told)


@dataclass(frozen=True, slots=True)
class _Evaluating:
    coder: Autoencoder
    tokenizer: Any
    kinds: Sequence[Kind]
    asked: Asked

    def run(self, told: Told) -> Evaluation:
        cuts, forms = self.asked.cuts(), self.asked.forms
        found = Evaluation(refine=self.asked.fit.steps, continuations=self.asked.fit.continuations)
        every = [(kind, size, parts) for kind in self.kinds for size, parts in cuts]
        total = len(every) * len(forms) + 1
        for number, (kind, size, parts) in enumerate(every):
            if (spans := self._spans(kind, size)) is None:
                found.short.append((kind.name, size))
                continue
            what, made = (kind.name, size, sum(many for _, many in parts), len(spans)), []
            known = dict[bytes, torch.Tensor]()  # slots are made once for all forms
            for at, form in enumerate(forms):
                now = partial(told, number * len(forms) + at, total, f"{kind.name}, {size} tokens, {form.name}")
                made.append(self._back(spans, parts, Storing(self.coder, form), known, now))
            found.repeated.append(_repeated(what, made[0][1]))
            found.stored.extend(_stored(what, one, made[0]) for one in made)
            more = None if kind.name in GENERATED else self._spans(kind, size + self.asked.continued)
            if more is not None:
                now = partial(told, (number + 1) * len(forms), total, f"{kind.name}, {size} tokens, what follows")
                found.continued.append(self._continued(kind, more, parts, now))
        told(total - 1, total, "seconds for one context")
        found.latencies.extend(self._latencies(cuts))
        return found

    def _spans(self, kind: Kind, size: int) -> torch.Tensor | None:
        drawn = kind.spans(self.asked.rows, size, self.asked.seed)
        return None if drawn is None else torch.from_numpy(drawn).to(self.coder.tags.device)

    def _back(
        self, spans: torch.Tensor, parts: Parts, storing: Storing, known: dict[bytes, torch.Tensor],
        now: Callable[[], None],
    ) -> Back:  # fmt: skip
        asked = self.asked
        passes = Measuring(
            self.coder, self.tokenizer, spans, parts, asked.batch_tokens, asked.half, now,
            kept=storing, fit=asked.fit, known=known,
        )  # fmt: skip
        return storing, np.array(passes.measure(len(spans)), np.float64)

    def _continued(self, kind: Kind, texts: torch.Tensor, parts: Parts, now: Callable[[], None]) -> Continued:
        size = texts.shape[1] - self.asked.continued

        def some(numbers: list[int]) -> list[Continuation]:
            now()
            both = texts[numbers, :size], texts[numbers, size:]
            return continuation(self.coder, *both, parts, self.asked.fit, now)

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


def _repeated(what: What, rows: Floats) -> Repeated:
    nats, agreement, bleu4, prefix = (interval(one[:, None]) for one in rows.T)
    return Repeated(*what, nats, agreement, _known(bleu4), prefix)


def _stored(what: What, one: Back, first: Back) -> Stored:
    storing, rows = one
    nats, _, bleu4, prefix = (interval(column[:, None]) for column in rows.T)
    apart = None if one is first else _known(interval(np.stack([rows[:, 2], first[1][:, 2]], 1), difference(mean)))
    return Stored(*what, storing.form.name, storing.bytes, storing.loss, nats, _known(bleu4), apart, prefix)


def _known(one: Interval) -> Interval | None:
    return None if math.isnan(one.value) else one


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of some runs."""
    return float(np.median([timed(work, device)[1] for _ in range(TIMED + 1)][1:]))
