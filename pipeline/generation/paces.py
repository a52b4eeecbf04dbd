"""What rounds take: by a table of passes (``costs``) as long as nothing else is known, then by the clock.

A table is measured by passes alone, with other prompts and maybe under another load. What rounds of this size took
lately says it better; the table tells what those would take that were not tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DOUBT = 0.3
"""The part of its time that a table may be off."""

_TABLE = 2.0
"""Rounds that the table counts for."""

_MEMORY = 64
"""Rounds of its own after which what a round took counts for a third."""

_AGES = 4096
"""The same of any rounds: what was slow once, under other load, is believed less and less."""

_MOST = 3.0
"""Times what is expected that a round counts for: something else held it up."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a round goes: ``rounds`` of the largest drafter, 0 where tokens are copied if at all; the target checks
    ``width`` tokens of each row, the last one written and drafts."""

    rounds: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} tokens each" + f" after {self.rounds} rounds of a drafter" * (self.rounds > 0)


PLAIN = Way(0, 1)

Seconds = Callable[[int, Way], float]
"""Of a round of so many rows."""


def size_of(rows: int) -> int:
    """What is alike: the next power of two, as recordings have it."""
    return 1 << (rows - 1).bit_length()


@dataclass(slots=True)
class _Seen:
    """Times the table's seconds: a sum of so much weight, as of this round."""

    times: float = 0.0
    weight: float = 0.0
    at: int = 0


class Paces:
    """Seconds of rounds, those of a table of ``seconds`` to begin with."""

    def __init__(self, seconds: Seconds) -> None:
        self._table, self._round = seconds, 0
        self._seen: dict[tuple[int, Way], _Seen] = {}
        self._plain, self._others = _Seen(), _Seen()  # of any number of rows, all ways but the plain one together

    def of(self, rows: int, way: Way) -> float:
        """Of a round of so many rows."""
        one = self._of(rows, way)
        return self._table(rows, way) * (_TABLE * self._usual(way) + one.times) / (_TABLE + one.weight)

    def doubt(self, rows: int, way: Way) -> float:
        """The part of these seconds that it may take more."""
        return DOUBT * _TABLE / (_TABLE + self._of(rows, way).weight)

    def saw(self, rows: int, way: Way, seconds: float) -> None:
        """A round took so long, and nothing else went on."""
        self._round += 1
        times = min(seconds, _MOST * self.of(rows, way)) / self._table(rows, way)
        for one in (self._of(rows, way), self._plain if way == PLAIN else self._others):
            one.times, one.weight = [
                (1 - 1 / _MEMORY) * old + new for old, new in ((one.times, times), (one.weight, 1.0))
            ]

    def _of(self, rows: int, way: Way) -> _Seen:
        """Faded up to now."""
        one = self._seen.setdefault((size_of(rows), way), _Seen(at=self._round))
        if gone := self._round - one.at:
            keep = (1 - 1 / _AGES) ** gone
            one.times, one.weight, one.at = keep * one.times, keep * one.weight, self._round
        return one

    def _usual(self, way: Way) -> float:
        """Times the table's seconds that such rounds take here: what is known of some ways is likely true of others."""
        found = (_TABLE + self._plain.times) / (_TABLE + self._plain.weight)
        if way == PLAIN:
            return found
        return (_TABLE * found + self._others.times) / (_TABLE + self._others.weight)
