"""Prompts are read: by the target, and by its drafters while they draft. What others have read is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import pack
from pipeline.generation.engine import Engine
from pipeline.generation.rounds import Model, drafting
from pipeline.generation.texts import Text, given
from pipeline.passes.encoded import EncodedPasses
from pipeline.passes.transfers import on_device

Ints = NDArray[np.int64]


class Reader:
    """Reads by the passes of an ``engine``'s models.

    ``texts`` are those behind which answers are written, ``encoded`` what encoders read of each, and ``slots`` where
    rows are: it changes from outside. At most ``most`` tokens are read at once, and ``look`` is called in between.
    """

    def __init__(
        self, engine: Engine, texts: Sequence[Text], encoded: Sequence[Text], slots: Ints, most: int,
        look: Callable[[], None],
    ) -> None:  # fmt: skip
        self._target, self._device = engine.models[0], engine.lines.tokens.device
        self._texts, self._encoded, self._slots, self._most, self._look = texts, encoded, slots, most, look

    def read(
        self, readers: Sequence[Model], rows: Ints, waves: Sequence[Sequence[tuple[int, int, int]]]
    ) -> torch.Tensor:
        """All ``readers``, the target last, read the texts of ``rows``, wave by wave (``prefixes``) -> the target's
        hidden states ``[rows, d]`` of their last tokens."""
        for model in readers:
            self.encode(model, rows)
        read: list[int] = []
        last: list[torch.Tensor] = []
        for wave in waves:
            some, others, shared = np.array(wave).T
            texts = [self._texts[row] for row in some]
            # The last token's hidden state is needed.
            shared = np.minimum(shared, np.array([len(text) for text in texts]) - 1)
            copied = np.flatnonzero(shared)
            for model in readers:
                if len(copied):
                    columns = _columns(model, texts, shared)[copied]
                    model.passes.copy(self._slots[others[copied]], self._slots[some[copied]], columns)
                states = list(self.read_on(model, some, texts, shared))
            last += states  # the target's
            read += some.tolist()
        place = {row: place for place, row in enumerate(read)}
        return torch.cat(last)[on_device(np.array([place[row] for row in rows.tolist()]), self._device)]

    def encode(self, model: Model, rows: Ints) -> None:
        """The model's encoder, if it has one, reads their prompts, each as a whole."""
        passes = model.passes
        if not isinstance(passes, EncodedPasses):
            return
        texts = [self._encoded[row].seen(model.blind) or self._texts[row] for row in rows]
        lengths = np.array([len(text) for text in texts])
        for some in pack(lengths.tolist(), self._most):
            ids, vectors = given([texts[one] for one in some], self._device)
            self._look()
            with self._working(model):
                passes.encode(self._slots[rows[some]], model.own(ids), lengths[some], vectors)

    def read_on(self, model: Model, rows: Ints, texts: Sequence[Text], stored: Ints) -> Iterator[torch.Tensor]:
        """The hidden states of the last tokens of the rows' ``texts``, of which ``stored`` places need not be read."""
        stored = _columns(model, texts, stored)
        texts = [text.seen(model.blind) for text in texts]
        left = np.array([len(text) for text in texts]) - stored
        for some, before, counts in _pieces(left, self._most):
            cached = stored[some] + before
            parts = zip(some.tolist(), cached.tolist(), (cached + counts).tolist(), strict=True)
            ids, vectors = given([texts[row].part(begin, end) for row, begin, end in parts], self._device)
            self._look()
            with self._working(model):
                hidden = model.passes.run(self._slots[rows[some]], model.own(ids), cached, counts, vectors)
            ends = (np.cumsum(counts) - 1)[before + counts == left[some]]
            yield hidden[on_device(ends, self._device)]

    def _working(self, model: Model) -> AbstractContextManager[None]:
        return drafting() if model is not self._target else nullcontext()


def _columns(model: Model, texts: Sequence[Text], places: Ints) -> Ints:
    """Of the first ``places`` of each text those that the model reads."""
    if not model.blind:
        return places
    return np.array([text.words(count) for text, count in zip(texts, places.tolist(), strict=True)])


def _pieces(lengths: Ints, most: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Prompts end to end, cut every ``most`` tokens: a piece's rows, their tokens in earlier pieces, and in this."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    for begin in range(0, int(ends[-1]), most):
        first, last = np.maximum(begins, begin), np.minimum(ends, begin + most)
        rows = np.flatnonzero(last > first)
        yield rows, (first - begins)[rows], (last - first)[rows]
