"""What one pass of a fine-tuning reads and says, as numbers alone: questions behind the slots of their contexts, and
spans that are repeated from theirs, in one rectangle.

Passes of a training are of all lengths. Where steps can be recorded (``replaying``) they are given a little room, so
that few shapes come up, again and again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder, Tag
from pipeline.memory.head_loss import nats_of
from pipeline.memory.questions import Question
from pipeline.memory.ragged import Laid, encode_laid, lay
from pipeline.memory.spans import Ints
from pipeline.passes.transfers import on_device
from schemas.memory import EncoderSpec

_STEPS = 8, 128, 32, 8, 256, 512, 512
"""What ``Sizes`` are rounded up to."""


class Sizes(NamedTuple):
    """Of a sheet: spans, tokens of the longest and slots of the most, rows of the decoder and places of the widest, and
    how many slots and tokens are read and said in all."""

    spans: int
    longest: int
    most: int
    rows: int
    width: int
    slots: int
    said: int

    @property
    def places(self) -> int:
        """What both rectangles take."""
        return self.spans * (1 + self.longest + self.most) + self.rows * self.width


@dataclass(frozen=True, slots=True)
class Sheet:
    """Spans ``laid`` for the encoder. For the decoder ``words`` ``[rows, width]``, token ids; what of all slots, what
    stands first and tags, by number, is put ``into`` them, at flat places (behind the last: nowhere): both ``[m]``.
    Of what it says the flat places ``at``, the tokens there that are ``said``, and the ``weights`` of their nats:
    ``[n]``."""

    laid: Laid
    words: torch.Tensor
    slots: torch.Tensor
    into: torch.Tensor
    at: torch.Tensor
    said: torch.Tensor
    weights: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """As of ``replaying.Recurring``."""
        spans = self.laid.ids, self.laid.order, self.laid.places
        return *spans, self.words, self.slots, self.into, self.at, self.said, self.weights

    @property
    def shape(self) -> Hashable:
        """The same."""
        return tuple(one.shape for one in self.tensors)

    def copy(self) -> Sheet:
        """The same."""
        spans = Laid(*(one.clone() for one in self.tensors[:3]))
        words, slots, into, at, said, weights = (one.clone() for one in self.tensors[3:])
        return replace(self, laid=spans, words=words, slots=slots, into=into, at=at, said=said, weights=weights)

    def loss(self, coder: Autoencoder) -> torch.Tensor:
        """Nats of what is said, times the weights."""
        head = coder.model.get_output_embeddings().weight
        known = torch.cat([encode_laid(coder, self.laid).flatten(0, 1), coder.first, coder.tags])
        rows, width = self.words.shape
        words = coder.embed(self.words).flatten(0, 1)
        room = torch.cat([words, words[:1]])
        read = room.index_copy(0, self.into, known.to(words.dtype).index_select(0, self.slots))
        states = coder.say(read[:-1].view(rows, width, -1)).flatten(0, 1).index_select(0, self.at)
        return (nats_of(states.to(head.dtype)[None], head, self.said[None], ragged=True)[0] * self.weights).sum()


def sizes_of(questions: Sequence[Question]) -> Sizes:
    """As small as may be."""
    spans = [len(ids) for one in questions for each in one.spans for ids in each]
    counts = [count for one in questions for each in one.slots for count in each]
    again = [
        (len(ids), count)
        for one in questions
        if one.repeated
        for each in zip(one.spans, one.slots, strict=True)
        for ids, count in zip(*each, strict=True)
    ]
    answers = [len(one.example.answer) for one in questions]
    asked = [
        sum(map(len, one.example.runs)) + sum(map(sum, one.slots)) + many
        for one, many in zip(questions, answers, strict=True)
    ]
    repeated = [1 + count + size for size, count in again]
    slots = sum(counts) + len(questions) + sum(count + 2 for _, count in again)
    said = sum(answers) + sum(size for size, _ in again)
    rows = len(questions) + len(again)
    return Sizes(len(spans), max(spans), max(counts), rows, max(asked + repeated), slots, said)


def packed(questions: Sequence[Question], most: int) -> list[list[Question]]:
    """In sheets of at most so many places, but for one that alone takes more; the longest first."""
    found: list[list[Question]] = []
    for one in sorted(questions, key=lambda question: -question.width):
        if found and sizes_of([*found[-1], one]).places <= most:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def roomy(sizes: Sequence[Sizes], spec: EncoderSpec, window: int) -> Sizes:
    """Room for sheets of any of these ``sizes``, as far as they hardly differ, rounded up."""
    most = Sizes(*map(max, zip(*sizes, strict=True)))
    return rounded(most, spec, window)._replace(longest=0, most=0, width=0)


def rounded(sizes: Sizes, spec: EncoderSpec, window: int) -> Sizes:
    """Up, as far as the model's ``window`` and the encoder's slots allow."""
    up = Sizes(*(-(-size // step) * step for size, step in zip(sizes, _STEPS, strict=True)))
    most = max(sizes.most, min(up.most, spec.slots))
    longest = max(sizes.longest, min(up.longest, window - 1 - most))
    return up._replace(most=most, longest=longest, width=max(sizes.width, min(up.width, window)))


def sheet(
    questions: Sequence[Question], weights: tuple[float, float], sizes: Sizes, spec: EncoderSpec, device: torch.device
) -> Sheet:
    """In so much room, for encoders as ``spec`` says. ``weights``: of a token that is answered, and of one that is
    repeated."""
    spans = [ids for one in questions for each in one.spans for ids in each]
    counts = [count for one in questions for each in one.slots for count in each]
    laid = lay(spans, counts, spec.layout, device, sizes.spans, sizes.longest, sizes.most)
    words = np.zeros((sizes.rows, sizes.width), np.int64)
    slots, into, at, said, each = ([] for _ in range(5))
    for row, one in enumerate(_lines(questions, weights, laid.places.numel(), sizes.most)):
        words[row, : len(one.read)] = one.read.clip(0)
        (places,) = np.nonzero(one.read < 0)
        slots.append(~one.read[places])
        into.append(places + row * sizes.width)
        at.append(np.arange(one.asked - 1, len(one.read)) + row * sizes.width)
        said.append(one.said)
        each.append(np.full(len(one.said), one.weight, np.float32))
    fills = (slots, sizes.slots, 0), (into, sizes.slots, words.size), (at, sizes.said, 0), (said, sizes.said, 0)
    flat = (_filled(np.concatenate(some), size, fill) for some, size, fill in (*fills, (each, sizes.said, 0)))
    return Sheet(laid, *(on_device(one, device) for one in (words, *flat)))


@dataclass(frozen=True, slots=True)
class _Line:
    """What the decoder reads, token ids and, below 0, what is no token (its number inverted), of which the first
    ``asked`` come before what is ``said``; and the ``weight`` of a token of that."""

    read: Ints
    asked: int
    said: Ints
    weight: float

    @classmethod
    def of(cls, pieces: Sequence[Ints], said: Ints, weight: float) -> _Line:
        return cls(np.concatenate([*pieces, said[:-1]]), sum(map(len, pieces)), said, weight)


def _lines(questions: Sequence[Question], weights: tuple[float, float], slots: int, most: int) -> list[_Line]:
    """Of all answers, then of all that is repeated. Slots are numbered by span, ``most`` of each; what stands first
    comes behind all ``slots``, then tags."""
    asked, repeated, span = list[_Line](), list[_Line](), 0

    def tag(name: Tag) -> Ints:
        return np.array([~(slots + 1 + TAGS.index(name))])

    for one in questions:
        runs = [np.array(run, np.int64) for run in one.example.runs]
        pieces = list[Ints]()
        for run, spans, counts in zip(runs[:-1], one.spans, one.slots, strict=True):
            pieces.append(run)
            for ids, count in zip(spans, counts, strict=True):
                pieces.append(~(span * most + np.arange(count)))
                span += 1
                if one.repeated:
                    repeated.append(_Line.of([np.array([~slots]), pieces[-1], tag("AE")], ids, weights[1]))
        pieces += [tag("FT"), runs[-1]]
        asked.append(_Line.of(pieces, np.array(one.example.answer, np.int64), weights[0]))
    return asked + repeated


def _filled(some: np.ndarray, size: int, fill: int) -> np.ndarray:
    return np.concatenate([some, np.full(size - len(some), fill, some.dtype)])
