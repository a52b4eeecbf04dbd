"""Prompts that begin alike: what was read of one of them need not be read of the others."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

WORTH = 64
"""Fewer tokens are read anew: copying their keys and values takes as long."""


class Prefixes:
    """Which of ``prompts``, by their numbers, begin alike; and which are here, with keys and values of all of it."""

    def __init__(self, prompts: Sequence[Sequence[int] | Ints]) -> None:
        # Sorted, the neighbours of a prompt are those that share most with it. Bytes compare at once.
        keys = [np.array(ids, dtype=">u4").tobytes() for ids in prompts]
        order = sorted(range(len(prompts)), key=lambda row: (keys[row], row))
        self._order, self._place = order, {row: place for place, row in enumerate(order)}
        ids = [np.array(prompts[row]) for row in order]
        self._common = np.array([_common(one, other) for one, other in pairwise(ids)], np.int64)
        shared = np.append(0, np.where(self._common >= WORTH, self._common, 0))
        self.fresh = np.zeros(len(prompts), np.int64)  # tokens of each that are to be read if all are
        self.fresh[order] = np.array([len(one) for one in ids], np.int64) - shared[: len(prompts)]
        self._here: list[int] = []  # places, in order

    def waves(self, rows: Sequence[int]) -> list[list[tuple[int, int, int]]]:
        """These rows in groups to be read one after the other, from then on here.

        For each row: another one that is here by then, and how many tokens it shares with that.
        """
        waves, waiting = [], sorted(rows, key=self._place.__getitem__)
        while waiting:
            wave: list[tuple[int, int, int]] = []
            late = []
            beside: list[int] = []
            for row in waiting:
                other, shared = self._most(row, self._here)
                if self._most(row, beside)[1] >= shared + WORTH:
                    late.append(row)
                else:
                    wave.append((row, other, shared if shared >= WORTH else 0))
                    beside.append(self._place[row])
            for row, *_ in wave:
                insort(self._here, self._place[row])
            waves.append(wave)
            waiting = late
        return waves

    def leave(self, row: int) -> None:
        """It is not here any more."""
        self._here.remove(self._place[row])

    def _most(self, row: int, places: Sequence[int]) -> tuple[int, int]:
        """The row at one of these ``places`` (in order) that shares most with ``row``, and how many tokens."""
        mine, found = self._place[row], (row, 0)
        after = bisect(places, mine)
        for place in places[max(0, after - 1) : after + 1]:
            shared = int(self._common[min(mine, place) : max(mine, place)].min())
            found = max(found, (self._order[place], shared), key=lambda one: one[1])
        return found


def _common(one: Ints, other: Ints) -> int:
    size = min(len(one), len(other))
    apart = np.flatnonzero(one[:size] != other[:size])
    return int(apart[0]) if len(apart) else size
