"""How many tokens to copy ahead: as many as pay, by what was accepted lately and what passes take on this machine.

Walltime improvement (Leviathan et al., arXiv 2211.17192, theorem 3.8; Chen et al., arXiv 2312.11462, section 4) with
measured times instead of counted parameters, and a chance of acceptance for every place of a draft.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.generation.costs import WIDTHS, Costs

_MEMORY = 64
"""Rounds after which what was seen counts for a third. What is forgotten is tried again."""

GAIN = 1.03
"""Times the tokens a second that drafts must promise: below it is noise."""

_HOPE = 0.75
"""The chance of a first draft where nothing is known: high enough to be tried where widths cost much."""

_SETUP = 50
"""Rounds that recording another width takes, about."""

_PROBE = 4
"""The width that is recorded to see whether drafts pass, until there were enough; later, only what is known to pay."""

_ENOUGH = 24


class Policy:
    """Widths for the rounds of one batch after another, from what their drafts came to and from ``costs``."""

    def __init__(self, costs: Costs) -> None:
        self._costs, self._drafted = costs, 0
        self._tried, self._passed = [0.0] * (WIDTHS[-1] - 1), [0.0] * (WIDTHS[-1] - 1)

    def width(self, rows: int, left: float, ready: Callable[[int], bool]) -> int:
        """Tokens that a round of ``rows`` rows should check, drafts and one; about ``left`` tokens of each are to come.

        ``ready`` says of a width whether it runs at full speed at once: another must be worth its recording.
        """
        costs = self._costs.of(rows)
        hoped, seen = self._tokens(_HOPE), self._tokens(0.0)
        rounds = []  # those of one token that go by until all are there
        for width, cost, hope, sure in zip(WIDTHS, costs, hoped, seen, strict=True):
            there = ready(width)
            trying = width == _PROBE and self._drafted < _ENOUGH
            rounds.append(left / (hope if there or trying else sure) * cost / costs[0] + _SETUP * (not there))
        best = min(rounds)
        return WIDTHS[rounds.index(best)] if best * GAIN < rounds[0] else 1

    def saw(self, width: int, accepted: NDArray[np.int64]) -> None:
        """What became of the drafts of a round of ``width``, row by row: so many were accepted."""
        keep = 1 - 1 / _MEMORY
        self._tried = [keep * one for one in self._tried]
        self._passed = [keep * one for one in self._passed]
        if width > 1:
            self._drafted += len(accepted)
            # Rows by how many passed or more: a place was tried where all before it passed.
            reached = np.bincount(accepted, minlength=width)[::-1].cumsum()[::-1].tolist()
            for place in range(width - 1):
                self._tried[place] += reached[place]
                self._passed[place] += reached[place + 1]

    def _tokens(self, chance: float) -> list[float]:
        """Expected of a row in a round, by ``WIDTHS``: one, and each draft if all up to it pass. What was not tried has
        the chance of the place before it, the first this ``chance``."""
        reached, total, found = 1.0, 1.0, [1.0]
        for tried, passed in zip(self._tried, self._passed, strict=True):
            chance = (passed + 2 * chance) / (tried + 2)
            reached *= chance
            total += reached
            found.append(total)
        return [found[width - 1] for width in WIDTHS]
