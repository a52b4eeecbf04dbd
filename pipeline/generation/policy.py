"""How to draft: as much as pays, by what was accepted lately and what rounds take on this machine.

Walltime improvement (Leviathan et al., arXiv 2211.17192, theorem 3.8; Chen et al., arXiv 2312.11462, section 4) with
measured times instead of counted parameters, and a chance of acceptance for every place of a draft. Whatever it
expects, it begins with plain decoding and drafts only for what it may lose (``purse``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.generation.chances import Chances
from pipeline.generation.paces import DOUBT, PLAIN, Paces, Seconds, Way, size_of
from pipeline.generation.purse import SHARE, Purse

Ints = NDArray[np.int64]

COPYING = (1, 2, 4, 8, 16)
"""Tokens that are checked where drafts are copied."""

_MEMORY = 64
"""Rounds after which what was seen counts for a third."""

_LONG_MEMORY = 4096
"""The same of drafters, which must read all that they missed before they are tried again: what is forgotten is hoped
for anew."""

GAIN = 1.03
"""Times the tokens a second that drafts must promise: below it is noise."""

_HOPE = 0.75
"""The chance of a drafter's first draft where nothing is known. Of copies it is known before any is drafted
(``shadow``)."""

_SETUP = 50
"""Plain rounds that recording another way takes, about, for each of its passes; until some were recorded."""

_ENOUGH = 24
"""Drafts, or rounds, below which nothing is known."""

_STINT = 8
"""Rounds before it is thought over."""

_REMINDER = 256
"""Rounds of drafting, after which two plain ones tell what these take by now."""

_LENT, _REPAID = 0.05, 2
"""What the purse does not hold is lent if it is no larger a part of the time (half of it where no such round was
timed), and repaid so many times: what is expected may not come."""

Reading = Callable[[float], float]
"""Seconds that drafters take to read so many tokens."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is to be done by rounds of ``rows`` rows: about ``left`` tokens of each and of those that will take its
    place, unless none are ``waiting``: then the slowest row decides when all is done. Rounds ``gone`` by used the same
    recordings. Drafters would have to read so many tokens at once that they ``missed``, and others ``later``."""

    rows: int
    left: float
    gone: int = 0
    missed: float = 0.0
    later: float = 0.0
    waiting: bool = True


class Policy:
    """Ways for the rounds of one batch after another, of those that there are: copies in any of ``COPYING``, and
    ``cascades`` of drafters, behind whose drafts ``tail`` tokens are copied. ``seconds`` and ``reading`` say what they
    take, until rounds were timed. ``taken``: how many rounds went each way."""

    def __init__(
        self, seconds: Seconds, cascades: Sequence[Way] = (), tail: int = 0, reading: Reading = lambda tokens: 0.0
    ) -> None:
        self._reading, self._tail = reading, tail
        self._cascades = sorted(cascades, key=lambda way: way.rounds)
        self._copies = Chances(COPYING[-1] - 1, _MEMORY)
        self._drafts = Chances(max((way.width - 1 for way in cascades), default=0), _LONG_MEMORY)
        most = self._cascades[0] if cascades else Way(1, 1 + tail)
        self._seen = 0
        self.taken: Counter[Way] = Counter()
        self._each = (most.width - 1 - tail) / most.rounds  # drafts that a round of the largest drafter gives, at most
        self._paces, self._purse = Paces(seconds), Purse()
        self._rounds = 0  # so many went by
        self._recording: float | None = None  # seconds, for each pass
        self._gained = [_ENOUGH / 2, float(_ENOUGH)]  # tokens of drafts where no row waits: that told, and all
        self._way, self._stint, self._size = PLAIN, 0, 0
        self._since_plain = 0
        self._late = 0.0  # seconds paid for that the device may still be at when the next round begins
        self._lent = False  # whether what the way needs first is more than the purse holds, and to be repaid

    def way(self, ahead: Ahead, ready: Callable[[Way], bool]) -> Way:
        """For the next round. ``ready`` says of a way whether it runs at full speed at once: another must be worth its
        recording."""
        size = size_of(ahead.rows)
        self._since_plain = 0 if self._way == PLAIN else self._since_plain + 1
        if self._stint > 0 and self._size == size:
            self._stint -= 1
        elif self._since_plain > _REMINDER and ready(PLAIN):
            self._way, self._stint, self._size = PLAIN, 1, size
        else:
            self._way, self._stint, self._size = self._best(ahead, ready), _STINT - 1, size
        return self._way

    def _best(self, ahead: Ahead, ready: Callable[[Way], bool]) -> Way:
        base, best = self._paces.of(ahead.rows, PLAIN), PLAIN
        least = base / GAIN  # seconds a token
        horizon = ahead.left + ahead.gone  # recordings serve later batches: as much as was, for all one can know
        told = 1.0 if ahead.waiting or ahead.rows == 1 else self._gained[0] / self._gained[1]
        for way, tokens, known in self._expected():
            seconds, tokens = self._paces.of(ahead.rows, way), 1 + told * (tokens - 1)
            setup = 0.0 if ready(way) else self._setup(way, base)
            missed, later = (self._reading(one if way.rounds else 0.0) for one in (ahead.missed, ahead.later))
            token = seconds / tokens + setup / horizon + (missed + later) / ahead.left
            if token >= least:
                continue
            doubt = self._paces.doubt(ahead.rows, way)
            doubtful = seconds * (1 + doubt)
            sure = 1 + (tokens - 1) / 2 if known else 1.0
            free = self._purse.holds - _STINT * max(0.0, doubtful - sure * base)
            once, all_of_it = setup + missed, horizon * base
            repaid = horizon * (base - seconds / tokens) >= _REPAID * once and doubtful < tokens * base
            small = once <= _LENT * all_of_it * (1 - doubt / DOUBT / 2)
            lent = known and repaid and small and self._purse.lends
            paid = not once or once <= min(free - self._purse.owed, SHARE * all_of_it)
            if free >= 0 and (lent or paid):
                best, least, self._lent = way, token, not paid
        return best

    def _expected(self) -> Iterator[tuple[Way, float, bool]]:
        """What may be drafted, the tokens of a row in such a round, and whether these are known or hoped for."""
        copies = self._copies.expected(0.0)
        for width in COPYING[1:] if self._copies.number >= _ENOUGH else ():
            yield Way(0, width), copies[width - 1], True
        drafted, known = self._drafts.expected(_HOPE), self._drafts.number >= _ENOUGH
        for way in self._cascades:
            drafts = way.rounds * self._each + self._tail
            yield way, float(np.interp(drafts, np.arange(len(drafted)), drafted)), known

    def _setup(self, way: Way, base: float) -> float:
        return (_SETUP * base if self._recording is None else self._recording) * (1 + way.rounds)

    def saw(
        self, way: Way, drafted: Ints, accepted: Ints, gained: float | None = None, seconds: float | None = None,
        alone: bool = True, waiting: bool = True,
    ) -> None:  # fmt: skip
        """What became of a round, row by row: so many drafts were accepted of so many.

        ``gained``: plain rounds that would have given as much (tokens of a row, by default); and the ``seconds`` that
        it took, where they are known, with nothing but the round in them if it was ``alone``.
        """
        rows = len(accepted)
        self.taken[way] += 1
        self._rounds += 1
        self._copies.fade()
        self._drafts.fade()
        if way.rounds:
            self._seen += 1
            self._drafts.saw(drafted, accepted)
            each = (float(drafted.mean()) - self._tail) / way.rounds
            self._each += (each - self._each) / min(self._seen, _MEMORY)
        elif way.width > 1:
            self._copies.saw(drafted, accepted)
        tokens = 1 + float(accepted.mean())
        gained = tokens if gained is None else gained
        if not waiting and rows > 1:
            self._drained(gained - 1, tokens - 1)
        if seconds is not None:
            seconds, self._late = max(0.0, seconds - self._late), 0.0
            plain = self._paces.of(rows, PLAIN)
            self._purse.went(seconds, gained * plain if way != PLAIN else seconds + (gained - 1) * plain)
            if alone:
                self._paces.saw(rows, way, seconds)

    def _drained(self, told: float, all_told: float) -> None:
        """Of the tokens of drafts so many brought the end of a batch nearer."""
        keep = 1 - 1 / _LONG_MEMORY
        everything = keep * self._gained[1] + all_told
        self._gained = [min(max(keep * self._gained[0] + told, 0.0), everything), everything]

    def would(self, passed: Sequence[int]) -> None:
        """So many copies would have passed, each of as many as can be (``shadow``)."""
        if passed:
            self._copies.saw(np.full(len(passed), COPYING[-1] - 1), np.array(passed))

    def recorded(self, way: Way, seconds: float) -> None:
        """Recording a way took so long. Plain decoding needs its own, too."""
        each = seconds / (1 + way.rounds)
        self._recording = each if self._recording is None else (self._recording + each) / 2
        if way != PLAIN:
            self._purse.pay(seconds, self._lent)

    def read(self, tokens: float, seconds: float = 0.0) -> None:
        """Drafters read so many tokens, which took as long as that or more."""
        whole = max(seconds, self._reading(tokens))
        self._late += whole - seconds if seconds else 0.0  # launched, and not waited for: the next round is longer
        self._purse.pay(whole, self._lent)

    def seconds(self, rows: int, way: Way = PLAIN) -> float:
        """Of a round, as far as is known."""
        return self._paces.of(rows, way)

    def expected(self) -> dict[str, list[float]]:
        """Tokens of a row in a round with 0, 1, 2... drafts, copied or a drafter's."""
        return {"copies": self._copies.expected(0.0), "drafters": self._drafts.expected(0.0)}
