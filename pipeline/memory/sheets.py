"""What one pass of a fine-tuning reads and says, as numbers alone: questions behind the slots of their contexts, and
spans that are repeated from theirs, in one rectangle.

Passes of a training are of all lengths. Where steps can be recorded (``replaying``) they are given a little room, so
that few shapes come up, again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder, Tag
from pipeline.memory.head_loss import nats_of
from pipeline.memory.questions import Question
from pipeline.memory.ragged import Laid, encode_laid, lay
from pipeline.memory.replaying import RECORDERS
from pipeline.memory.spans import Ints
from pipeline.passes.transfers import on_device
from schemas.memory import EncoderSpec

_STEPS = {"longest": 128, "width": 256, "most": 32, "spans": 8, "rows": 8, "slots": 512, "said": 512}
"""What sizes are rounded up to."""

_GROWING = frozenset({"spans", "rows", "slots", "said"})
"""Sizes that hardly differ from step to step: they are as large as any was."""


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


class Sheets:
    """Makes them, for encoders as ``spec`` says, on ``device``."""

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._largest = Counter[str]()

    def __call__(self, questions: Sequence[Question], weights: tuple[float, float], recurring: bool = True) -> Sheet:
        """``weights``: of a token that is answered, and of one that is repeated. ``recurring``: of a shape that will
        come up again."""
        sized = self._rounded if recurring and self._device.type in RECORDERS else lambda name, size: size
        spans = [ids for one in questions for each in one.spans for ids in each]
        counts = [count for one in questions for each in one.slots for count in each]
        most = sized("most", max(counts))
        if self._spec.layout == "appended":  # which has so many memory tokens
            most = min(most, self._spec.slots)
        laid = lay(
            spans, counts, self._spec.layout, self._device,
            sized("spans", len(spans)), sized("longest", max(map(len, spans))), most,
        )  # fmt: skip
        lines = _lines(questions, weights, laid.places.numel(), most)
        width = sized("width", max(len(one.read) for one in lines))
        words = np.zeros((sized("rows", len(lines)), width), np.int64)
        slots, into, at, said, each = ([] for _ in range(5))
        for row, one in enumerate(lines):
            words[row, : len(one.read)] = one.read.clip(0)
            (places,) = np.nonzero(one.read < 0)
            slots.append(~one.read[places])
            into.append(places + row * width)
            at.append(np.arange(one.asked - 1, len(one.read)) + row * width)
            said.append(one.said)
            each.append(np.full(len(one.said), one.weight, np.float32))
        many, long = (sized(name, sum(map(len, some))) for name, some in (("slots", slots), ("said", said)))
        fills = (slots, many, 0), (into, many, words.size), (at, long, 0), (said, long, 0), (each, long, 0)
        flat = (_filled(np.concatenate(some), size, fill) for some, size, fill in fills)
        return Sheet(laid, *(on_device(one, self._device) for one in (words, *flat)))

    def _rounded(self, name: str, size: int) -> int:
        found = -(-size // _STEPS[name]) * _STEPS[name]
        if name not in _GROWING:
            return found
        self._largest[name] = max(self._largest[name], found)
        return self._largest[name]


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
