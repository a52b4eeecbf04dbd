"""Texts to pretrain on: tokens end to end, and windows of them that lie within one text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.spans import Ints


@dataclass(frozen=True, slots=True)
class Corpus:
    """``ids`` of all texts, of which text i begins at ``begins[i]`` and has ``lengths[i]`` tokens."""

    ids: NDArray[np.int32]
    begins: Ints
    lengths: Ints

    @classmethod
    def of(cls, texts: Iterable[Sequence[int] | NDArray[np.int32]]) -> Corpus:
        """Of texts that are tokenised."""
        arrays = [np.asarray(text, np.int32) for text in texts]
        lengths = np.array([len(one) for one in arrays], np.int64)
        ids = np.concatenate([*arrays, np.zeros(0, np.int32)])
        return cls(ids, np.cumsum(lengths) - lengths, lengths)

    def windows(self, random: np.random.Generator, rows: int, size: int, starts: float = 0.0) -> Ints:
        """``rows`` windows ``[rows, size]``. The first of them, a share of ``starts`` in the mean, are the first tokens
        of texts, of each text once before one comes again; of the others each place of a text is as likely as another.
        Raises ``ValueError`` where no text has so many tokens."""
        places = np.maximum(0, self.lengths - size + 1)
        if not places.any():
            raise ValueError(f"no text has {size} tokens; the longest has {self.lengths.max(initial=0)}")
        ends = np.cumsum(places)
        drawn = random.integers(ends[-1], size=rows)
        text = np.searchsorted(ends, drawn, side="right")
        first = self.begins[text] + drawn - (ends[text] - places[text])
        if starts:
            whole = int(rows * starts + random.random())
            first[:whole] = self.begins[np.resize(random.permutation(np.flatnonzero(places)), whole)]
        found: Ints = self.ids[first[:, None] + np.arange(size)].astype(np.int64)
        return found
