"""Rows of different lengths, laid end to end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def ragged(counts: Ints) -> tuple[Ints, Ints]:
    """Row and place in it of every element, row r having ``counts[r]``: 0, 0, 1, 1, 1 and 0, 1, 0, 1, 2 for 2, 3."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def padded(flat: Ints, counts: Ints) -> Ints:
    """Rows laid end to end as a rectangle filled with 0 on the right."""
    mask = np.arange(int(counts.max(initial=0))) < counts[:, None]
    rectangle = np.zeros(mask.shape, dtype=np.int64)
    rectangle[mask] = flat
    return rectangle
