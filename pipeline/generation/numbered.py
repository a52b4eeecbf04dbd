"""Texts as numbers, by which those that begin alike are found (``prefixes``), vectors and all.

A document's vectors are megabytes. Where no other text has the same first one they are not looked at: for some hundred
documents that would take the host half a second, while a GPU waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.prompts import VECTOR
from pipeline.generation.texts import Text

Ints = NDArray[np.int64]

_NUMBERED = 2**31
"""From here on vectors are numbered: no model has as many tokens."""

_BEGINNING = 8
"""Numbers of each vector that are looked at before all of them are."""


def comparable(texts: Sequence[Text]) -> list[Ints]:
    """Numbers of each text that are equal as long as two texts are: tokens, and vectors to the last bit."""
    firsts = [_first(one) for one in texts]
    alike, numbers, end, found = Counter(firsts), _Numbers(), _NUMBERED, []
    for text, first in zip(texts, firsts, strict=True):
        ids = text.ids
        if text.vectors is not None and first is not None:
            begin, end = end, end + len(text.vectors)
            ids = ids.copy()
            ids[ids == VECTOR] = np.arange(begin, end) if alike[first] == 1 else numbers.of(text.vectors, begin)
        found.append(ids)
    return found


def _first(text: Text) -> Hashable:
    """Where it has its first vector, and which; None without any."""
    if text.vectors is None or not len(text.vectors):
        return None
    return int((text.ids == VECTOR).argmax()), text.vectors.dtype, _held(text.vectors[:1]).tobytes()


class _Numbers:
    """Equal ones for equal vectors."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.dtype, bytes], int] = {}
        self._whole: dict[Hashable, tuple[NDArray[np.uint8], Ints]] = {}  # by the beginnings of all vectors of a text

    def of(self, vectors: torch.Tensor, begin: int) -> Ints:
        """Of vectors ``[k, d]``; from ``begin`` on those of which none is known."""
        held, key = _held(vectors), (vectors.dtype, _held(vectors[:, :_BEGINNING]).tobytes())
        same, numbers = self._whole.get(key, (None, np.zeros(0, np.int64)))
        if same is None or not np.array_equal(held, same):  # else it is asked about again: no vector is looked up
            known = self._known
            rows = [(vectors.dtype, row.tobytes()) for row in held]
            numbers = np.array([known.setdefault(row, begin + place) for place, row in enumerate(rows)])
            self._whole[key] = held, numbers
        return numbers


def _held(vectors: torch.Tensor) -> NDArray[np.uint8]:
    """Bytes of each, on the host."""
    found: NDArray[np.uint8] = vectors.detach().cpu().contiguous().view(torch.uint8).numpy()
    return found
