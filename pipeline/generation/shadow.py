"""What copying would have made of answers that are written without it.

Drafts change no answer, so whether a copied one would have passed shows as soon as the answer is there: nothing need be
drafted, recorded or checked to know. A look from the host takes some 20 microseconds, while the device writes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.generation.maxgram import LONGEST
from schemas.drafting import MOST_COPIED

Ints = NDArray[np.int64]

_LOOKS = 2
"""Rows that a look is taken at in a round: what many would have copied is not needed from all of them."""


@dataclass(slots=True)
class _Row:
    """``text``: what may be copied from, ``length`` tokens of it, ``counted`` of them from the answer, with room for
    all of that. ``made``: the answer, which grows from outside."""

    text: Ints
    length: int
    made: Sequence[int]
    counted: int = 0

    def now(self) -> tuple[Ints, int]:
        """The text with all of the answer that is there, and its length."""
        newest = self.made[self.counted :]
        self.text[self.length : self.length + len(newest)] = newest
        self.length, self.counted = self.length + len(newest), len(self.made)
        return self.text, self.length


class Shadow:
    """Rounds of ``MOST_COPIED`` copies that never were, row by row, each where the one before it ended.

    A round of many rows has little to do here: only what is looked at is written down, and set against its answer.
    """

    def __init__(self, follows: Ints | None = None) -> None:
        """``follows``: what mostly comes after each token, if that is drafted where nothing matches."""
        self._follows = follows
        self._rows: dict[int, _Row] = {}
        # Of rows that are looked at: so much of the answer was set against them, so many of them passed, and all.
        self._drafts: dict[int, tuple[int, int, list[int]]] = {}
        self._turn = 0

    def begin(self, row: int, text: Ints, made: Sequence[int], new: int) -> None:
        """All that the row may copy from, its answer left out: of that ``made`` is there, which grows to ``new`` tokens
        at most."""
        self._rows[row] = _Row(np.concatenate([text, np.zeros(new, np.int64)]), len(text), made)
        self._drafts.pop(row, None)

    def keep(self, rows: Sequence[int]) -> None:
        """Of those that began all others have ended."""
        if len(rows) < len(self._rows):
            for row in set(self._rows).difference(rows):
                del self._rows[row]
                self._drafts.pop(row, None)

    def wrote(self, rows: Sequence[int], look: bool) -> list[int]:
        """More is made of these rows -> of the drafts that this puts an end to, how many would have passed. ``look``:
        go on looking; else what was begun is forgotten, as copies are drafted in earnest."""
        found: list[int] = []
        for row, (place, passed, drafts) in list(self._drafts.items()):
            made = self._rows[row].made
            for token in made[place:]:
                if passed == len(drafts) or drafts[passed] != token:  # the target's own, with which such a round ends
                    found.append(passed)
                    del self._drafts[row]
                    break
                passed += 1
            else:
                self._drafts[row] = len(made), passed, drafts
        if not look:
            self._drafts.clear()
            return found
        for _ in range(min(_LOOKS, len(rows))):  # each has its turn
            self._turn = (self._turn + 1) % len(rows)
            if (row := rows[self._turn]) not in self._drafts:
                one = self._rows[row]
                self._drafts[row] = len(one.made), 0, copied(*one.now(), MOST_COPIED, self._follows)
        return found


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
