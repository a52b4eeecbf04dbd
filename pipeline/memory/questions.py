"""What a step of fine-tuning learns from: questions to be answered from the slots of their contexts, of which some are
to be repeated, too.

Everything random follows from the seed and the number of the step, as in pretraining.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.examples import Example
from pipeline.memory.lessons import lesson
from pipeline.memory.ragged import encode_spans
from pipeline.memory.saying import nats
from pipeline.memory.spans import Ints
from schemas.memory import FinetuneSpec, Lesson, slots_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """An example in a lesson: its contexts cut into ``spans`` of so many ``slots``, to be ``repeated``, too, or not."""

    example: Example
    spans: tuple[tuple[Ints, ...], ...]
    slots: tuple[tuple[int, ...], ...]
    repeated: bool = False

    @classmethod
    def of(cls, example: Example, one: Lesson, more: int = 0, repeated: bool = False) -> Question:
        """Cut into so many spans ``more`` than are needed."""
        spans = tuple(map(tuple, example.spans(one, more)))
        return cls(
            example, spans, tuple(tuple(slots_of(len(ids), one.ratio) for ids in each) for each in spans), repeated
        )

    @property
    def width(self) -> int:
        """Tokens that are read of it: by the encoder with its memory tokens, then by the decoder."""
        read = self.example.tokens + sum(map(sum, self.slots))
        asked = sum(map(len, self.example.runs)) + sum(map(sum, self.slots)) + 1 + len(self.example.answer)
        return read * (2 if self.repeated else 1) + asked


def flat(nested: Iterable[Iterable[T]]) -> list[T]:
    """One level less."""
    return list(itertools.chain.from_iterable(nested))


def slots_of_all(coder: Autoencoder, rows: Sequence[Question]) -> list[list[list[torch.Tensor]]]:
    """Slots ``[k, d]`` of each span, by context and row; all in one pass."""
    spans, numbers = flat([flat(row.spans) for row in rows]), flat([flat(row.slots) for row in rows])
    found = iter(encode_spans(coder, spans, numbers))
    return [[[next(found) for _ in each] for each in row.spans] for row in rows]


def prompts_of(
    coder: Autoencoder, rows: Sequence[Question], slots: Sequence[Sequence[Sequence[torch.Tensor]]]
) -> list[torch.Tensor]:
    """What the decoder reads before it answers, ``[n, d]`` of each row."""
    return [
        coder.prompt(row.example.runs, [torch.cat([*each]) for each in blocks])
        for row, blocks in zip(rows, slots, strict=True)
    ]


def repeated(coder: Autoencoder, spans: Sequence[Ints], slots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Nats of saying each span ``[n]`` behind its own slots ``[k, d]``."""
    return nats(coder, [coder.prompt([[], []], [one], "AE") for one in slots], [ids.tolist() for ids in spans])


def questions(found: Sequence[Example], spec: FinetuneSpec, step: int) -> list[Question]:
    """Of this step, each example as often as any other, in another order in each epoch."""
    random, one = np.random.default_rng([spec.seed, step]), lesson(spec, step)
    places = np.arange(step * spec.rows_per_step, (step + 1) * spec.rows_per_step)
    rows = [found[_order(spec.seed, at // len(found), len(found))[at % len(found)]] for at in places.tolist()]
    more = random.random(len(rows)) < spec.multi_span
    again = random.permutation(len(rows)) < math.ceil(len(rows) * spec.autoencoding)
    return [
        Question.of(*each)
        for each in zip(rows, [one] * len(rows), more.astype(int).tolist(), again.tolist(), strict=True)
    ]


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(number)


def share(rows: Sequence[Question], rank: int = 0, world: int = 1) -> list[Question]:
    """Of one of several processes: each has its part of the long."""
    return sorted(rows, key=lambda row: -row.width)[rank::world] if world > 1 else [*rows]


def weights_of(rows: Sequence[Question], spec: FinetuneSpec) -> tuple[float, float]:
    """Of a token that is answered, and of one that is repeated, in a step of these: so that its loss is the mean nats
    of either, mixed; texts beside them weigh the rest."""
    answered = sum(len(row.example.answer) for row in rows)
    said = sum(row.example.tokens for row in rows if row.repeated)
    whole = 1 - spec.weight_of_texts
    return whole * (1 - spec.autoencoding) / answered, whole * spec.autoencoding / max(1, said)
