"""What copying would have made of answers that are written without it.

Drafts change no answer, so whether a copied one would have passed shows as soon as the answer is there: nothing need be
drafted, recorded or checked to know. A look from the host takes some 20 microseconds, while the device writes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.generation.maxgram import LONGEST
from schemas.drafting import MOST_COPIED

Ints = NDArray[np.int64]

_LOOKS = 2
"""Rows that are looked at: what many would have copied is not needed from all of them."""

_TURN = 64
"""Tokens of a row, after which another is looked at: of as many drafts of each, those that copy would be too many."""


@dataclass
class _Row:
    """``texts``: what may be copied from, part by part, which many rows may have in common. ``made``: the answer, which
    grows from outside to ``new`` tokens; so much of it is ``written`` behind the texts."""

    texts: Sequence[Ints]
    made: Sequence[int]
    new: int
    written: int = 0

    @cached_property
    def text(self) -> Ints:
        """All of it, with room for the answer: made for rows that are looked at, which few are of many."""
        return np.concatenate([*self.texts, np.zeros(self.new, np.int64)])

    @cached_property
    def length(self) -> int:
        """Tokens before the answer."""
        return sum(map(len, self.texts))

    def drafts(self, place: int, follows: Ints | None) -> list[int]:
        """What would be copied behind the first ``place`` tokens of the answer."""
        newest = self.made[self.written :]
        self.text[self.length + self.written : self.length + len(self.made)] = newest
        self.written = len(self.made)
        return copied(self.text, self.length + place, MOST_COPIED, follows)


@dataclass(slots=True)
class _Look:
    """At a row: ``passed`` of its ``drafts`` are what stands before ``place`` of the answer. ``counts``: they begin
    where a round would: others are likelier to begin within a long copy than before it. Looked at ``until`` there."""

    place: int
    drafts: list[int]
    counts: bool
    until: int
    passed: int = 0


class Shadow:
    """Rounds of ``MOST_COPIED`` copies that never were, row by row, each where the one before it ended.

    A round of many rows has little to do here: only what is looked at is written down, and set against its answer.
    """

    def __init__(self, follows: Ints | None = None) -> None:
        """``follows``: what mostly comes after each token, if that is drafted where nothing matches."""
        self._follows = follows
        self._rows: dict[int, _Row] = {}
        self._looks: dict[int, _Look] = {}
        self._turn = 0

    def begin(self, row: int, texts: Sequence[Ints], made: Sequence[int], new: int) -> None:
        """All that the row may copy from, one text behind the other, its answer left out: of that ``made`` is there,
        which grows to ``new`` tokens at most."""
        self._rows[row] = _Row(texts, made, new)
        self._looks.pop(row, None)

    def keep(self, rows: Sequence[int]) -> None:
        """Of those that began all others have ended."""
        if len(rows) < len(self._rows):
            for row in set(self._rows).difference(rows):
                del self._rows[row]
                self._looks.pop(row, None)

    def wrote(self, rows: Sequence[int], look: bool) -> list[int]:
        """More is made of these rows -> of the drafts that this puts an end to, how many would have passed. ``look``:
        go on looking; else what was begun is forgotten, as copies are drafted in earnest."""
        found: list[int] = []
        for row, one in list(self._looks.items()):
            found += self._ends(self._rows[row], one)
            if one.place >= one.until and not one.passed and len(self._rows) > _LOOKS:
                del self._looks[row]
        if not look:
            self._looks.clear()
            return found
        for _ in rows:
            if len(self._looks) == _LOOKS:
                break
            self._turn = (self._turn + 1) % len(rows)
            if (row := rows[self._turn]) not in self._looks:
                text = self._rows[row]
                place = len(text.made)
                self._looks[row] = _Look(place, text.drafts(place, self._follows), place <= 1, place + _TURN)
        return found

    def _ends(self, row: _Row, look: _Look) -> Iterator[int]:
        """Of each draft that ends with the tokens that are new, how many passed; behind it the next begins."""
        for token in row.made[look.place :]:
            look.place += 1
            if look.passed < len(look.drafts) and look.drafts[look.passed] == token:
                look.passed += 1
                continue
            if look.counts:  # there is the target's own token, with which such a round ends
                yield look.passed
            look.drafts, look.passed, look.counts = row.drafts(look.place, self._follows), 0, True


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
