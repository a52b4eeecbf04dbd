"""What copying would have made of answers that are written without it.

Drafts change no answer, so whether a copied one would have passed shows as soon as the answer is there: nothing need be
drafted, recorded or checked to know. A look from the host takes some 20 microseconds, while the device writes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.generation.maxgram import LONGEST
from schemas.drafting import MOST_COPIED

Ints = NDArray[np.int64]

_LOOKS = 2
"""In a round, for all rows: what many rows would have copied is not needed from all of them."""


class Shadow:
    """Rounds of ``MOST_COPIED`` copies that never were, row by row, each where the one before it ended."""

    def __init__(self, follows: Ints | None = None) -> None:
        """``follows``: what mostly comes after each token, if that is drafted where nothing matches."""
        self._follows = follows
        self._texts: dict[int, Ints] = {}
        self._lengths: dict[int, int] = {}
        self._drafts: dict[int, list[int]] = {}  # of rows that are looked at
        self._passed: dict[int, int] = {}
        self._turn = 0

    def begin(self, row: int, text: Ints, new: int) -> None:
        """All that the row may copy from, its answer left out, of which there will be at most ``new`` tokens."""
        self._texts[row] = np.concatenate([text, np.full(new + MOST_COPIED, -1)])
        self._lengths[row] = len(text)
        self._drafts.pop(row, None)

    def leave(self, row: int) -> None:
        """It has ended."""
        for known in (self._texts, self._lengths, self._drafts, self._passed):
            known.pop(row, None)

    def wrote(self, rows: Sequence[int], newest: Sequence[Sequence[int]], look: bool) -> list[int]:
        """The newest tokens of each of these rows -> of the drafts that these put an end to, how many would have
        passed. ``look``: go on looking; else what was begun is forgotten, as copies are drafted in earnest."""
        found: list[int] = []
        for row, some in zip(rows, newest, strict=True):
            for token in some:
                self._write(row, token, found)
            if not look:
                self._drafts.pop(row, None)
        if look:
            waiting = [row for row in rows if row not in self._drafts]
            self._turn = (self._turn + _LOOKS) % max(1, len(waiting))  # each has its turn
            for row in waiting[self._turn : self._turn + _LOOKS] or waiting[:_LOOKS]:
                self._drafts[row] = copied(self._texts[row], self._lengths[row], MOST_COPIED, self._follows)
                self._passed[row] = 0
        return found

    def _write(self, row: int, token: int, found: list[int]) -> None:
        text, length = self._texts[row], self._lengths[row]
        if length < len(text):
            text[length] = token
            self._lengths[row] = length + 1
        drafts = self._drafts.get(row)
        if drafts is None:
            return
        passed = self._passed[row]
        if passed < len(drafts) and drafts[passed] == token:
            self._passed[row] = passed + 1
        else:  # the target's own token, with which such a round ends
            found.append(passed)
            del self._drafts[row]


def copied(text: Ints, length: int, count: int, follows: Ints | None = None) -> list[int]:
    """``count`` tokens that would be copied behind the first ``length`` of ``text``: as ``maxgram.propose`` has it."""
    ends = np.flatnonzero(text[: length - 1] == text[length - 1])
    if not len(ends) and follows is not None:
        return _chain(follows, int(text[length - 1]), count)
    for back in range(1, LONGEST):
        longer = ends[ends >= back]
        longer = longer[text[longer - back] == text[length - 1 - back]] if length > back else longer[:0]
        if not len(longer):
            break
        ends = longer
    begin = int(ends[-1]) + 1 if len(ends) else length - 1
    found: list[int] = text[begin + np.arange(count) % (length - begin)].tolist()
    return found


def _chain(follows: Ints, token: int, count: int) -> list[int]:
    found = []
    for _ in range(count):
        token = int(follows[token])
        found.append(token)
    return found
