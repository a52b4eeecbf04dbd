"""How to draft: as much as pays, by what was accepted lately and what passes take on this machine.

Walltime improvement (Leviathan et al., arXiv 2211.17192, theorem 3.8; Chen et al., arXiv 2312.11462, section 4) with
measured times instead of counted parameters, and a chance of acceptance for every place of a draft.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COPYING = (1, 2, 4, 8, 16)
"""Tokens that are checked where drafts are copied."""

_MEMORY = 64
"""Rounds after which what was seen counts for a third. What is forgotten is tried again."""

_LONG_MEMORY = 4096
"""The same of drafters, which must read all that they missed before they are tried again."""

GAIN = 1.03
"""Times the tokens a second that drafts must promise: below it is noise."""

_HOPE = 0.75
"""The chance of a first draft where nothing is known: high enough to be tried where widths cost much."""

_SETUP = 50
"""Rounds that recording another way takes, about."""

_PROBE = 4
"""The width that is recorded to see whether copies pass, until there were enough; later, only what is known to pay."""

_ENOUGH = 24


@dataclass(frozen=True, slots=True)
class Way:
    """How a round goes: ``rounds`` of the largest drafter, 0 where tokens are copied if at all; the target checks
    ``width`` tokens of each row, the last one written and drafts."""

    rounds: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} tokens each" + f" after {self.rounds} rounds of a drafter" * (self.rounds > 0)


Seconds = Callable[[int, Way], float]
"""Of a round of so many rows."""

Reading = Callable[[float], float]
"""Seconds that drafters take to read so many tokens."""


class Policy:
    """Ways for the rounds of one batch after another, of those that there are: copies in any of ``COPYING``, and
    ``cascades`` of drafters, behind whose drafts ``tail`` tokens are copied. ``seconds`` and ``reading`` say what they
    take. ``taken``: how many rounds went each way."""

    def __init__(
        self, seconds: Seconds, cascades: Sequence[Way] = (), tail: int = 0, reading: Reading = lambda tokens: 0.0
    ) -> None:
        self._seconds, self._reading, self._tail = seconds, reading, tail
        self._cascades = sorted(cascades, key=lambda way: way.rounds)
        self._copies = _Chances(COPYING[-1] - 1, _MEMORY)
        self._drafts = _Chances(max((way.width - 1 for way in cascades), default=0), _LONG_MEMORY)
        most = self._cascades[0] if cascades else Way(1, 1 + tail)
        self._seen = 0
        self.taken: Counter[Way] = Counter()
        self._each = (most.width - 1 - tail) / most.rounds  # drafts that a round of the largest drafter gives, at most

    def way(self, rows: int, left: float, ready: Callable[[Way], bool], unread: float = 0.0) -> Way:
        """For a round of ``rows`` rows; about ``left`` tokens of each are to come, and drafters would have to read so
        many tokens that are ``unread``.

        ``ready`` says of a way whether it runs at full speed at once: another must be worth its recording.
        """
        plain = Way(0, 1)
        base = self._seconds(rows, plain)
        rounds = {}  # plain ones that go by until all tokens are there
        hoped, seen = self._copies.expected(_HOPE), self._copies.expected(0.0)
        for width in COPYING:
            way = Way(0, width)
            trying = ready(way) or (width == _PROBE and self._copies.number < _ENOUGH)
            tokens = (hoped if trying else seen)[width - 1]
            rounds[way] = left / tokens * self._seconds(rows, way) / base + _SETUP * (not ready(way))
        drafted = self._drafts.expected(_HOPE)
        for way in self._cascades:
            drafts = way.rounds * self._each + self._tail
            tokens = float(np.interp(drafts, np.arange(len(drafted)), drafted))
            extra = _SETUP * (not ready(way)) * (self._drafts.number >= _ENOUGH) + self._reading(unread) / base
            rounds[way] = left / tokens * self._seconds(rows, way) / base + extra
        best = min(rounds, key=rounds.__getitem__)
        return best if rounds[best] * GAIN < rounds[plain] else plain

    def saw(self, way: Way, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """What became of a round, row by row: so many drafts were accepted of so many."""
        self.taken[way] += 1
        self._copies.fade()
        self._drafts.fade()
        if way.rounds:
            self._seen += 1
            self._drafts.saw(drafted, accepted)
            each = (float(drafted.mean()) - self._tail) / way.rounds
            self._each += (each - self._each) / min(self._seen, _MEMORY)
        elif way.width > 1:
            self._copies.saw(drafted, accepted)

    def expected(self) -> dict[str, list[float]]:
        """Tokens of a row in a round with 0, 1, 2... drafts, copied or a drafter's."""
        return {"copies": self._copies.expected(0.0), "drafters": self._drafts.expected(0.0)}


class _Chances:
    """Whether drafts pass, by their place: an estimate as of survival (Kaplan and Meier, 1958), of which what lies
    ``memory`` rounds back counts for a third."""

    def __init__(self, places: int, memory: int) -> None:
        self.number, self._keep = 0, 1 - 1 / memory
        self._tried, self._passed = [0.0] * places, [0.0] * places

    def fade(self) -> None:
        """A round has gone by."""
        self._tried = [self._keep * one for one in self._tried]
        self._passed = [self._keep * one for one in self._passed]

    def saw(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """So many drafts of each row, of which so many were accepted: those behind the first refused were not tried."""
        self.number += len(accepted)
        places = np.arange(len(self._tried))
        tried = (places < np.minimum(drafted, accepted + 1)[:, None]).sum(0).tolist()
        passed = (places < accepted[:, None]).sum(0).tolist()
        self._tried = [one + more for one, more in zip(self._tried, tried, strict=True)]
        self._passed = [one + more for one, more in zip(self._passed, passed, strict=True)]

    def expected(self, chance: float) -> list[float]:
        """Tokens of a row in a round with 0, 1, 2... drafts: one, and each draft if all up to it pass. What was not
        tried has the chance of the place before it, the first this ``chance``."""
        reached, found = 1.0, [1.0]
        for tried, passed in zip(self._tried, self._passed, strict=True):
            chance = (passed + 2 * chance) / (tried + 2)
            reached *= chance
            found.append(found[-1] + reached)
        return found
