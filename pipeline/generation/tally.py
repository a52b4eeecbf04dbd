"""Who drafted how much for which row, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drafted:
    """What one drafter did for one answer: its ``passes`` (0 where tokens are copied), the tokens it ``drafted`` for
    the target, and those of them that stand in the answer."""

    passes: int
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Drafts:
    """Of one round, row by row: ``whose`` draft was at each place ``[rows, places]`` (-1: none), and the ``passes`` of
    each drafter; the first of them copies (``verifying.COPIES``)."""

    whose: Ints
    passes: Sequence[int]


class Tally:
    """Sums by row and drafter."""

    def __init__(self, rows: int, drafters: int) -> None:
        self._sums = np.zeros((rows, drafters, 3), np.int64)

    def begin(self, rows: Sequence[int]) -> None:
        """What was counted of these rows is forgotten."""
        self._sums[list(rows)] = 0

    def add(self, rows: Sequence[int], made: Sequence[int], drafts: Drafts) -> None:
        """A round gave each of ``rows`` so many tokens that it has ``made`` use of: all but its last were drafts."""
        drafters = np.arange(len(drafts.passes))
        stands = np.arange(drafts.whose.shape[1]) < (np.array(made) - 1)[:, None]
        mine = drafts.whose[:, None] == drafters[:, None]
        found = np.empty((len(rows), len(drafters), 3), np.int64)
        found[..., 0], found[..., 1], found[..., 2] = drafts.passes, mine.sum(2), (mine & stands[:, None]).sum(2)
        self._sums[np.array(rows)[:, None], drafters] += found

    def of(self, row: int) -> list[Drafted]:
        """By drafter."""
        return [Drafted(*sums) for sums in self._sums[row].tolist()]
