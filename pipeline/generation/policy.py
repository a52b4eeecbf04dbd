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

_GAIN = 1.03
"""Times the tokens a second that drafts must promise: below it is noise."""

_HOPE = 0.75
"""The chance of a first draft where nothing is known: high enough to be tried where widths cost much."""

_SETUP = 50
"""Rounds that recording another width takes, about."""

_PROBE = 4
"""The width that is recorded to see whether drafts pass; others, once it is known that they do."""


class Policy:
    """Widths for the rounds of one batch, from acceptance and ``costs``; the same for the same answers and costs."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._tried, self._passed = np.zeros(WIDTHS[-1] - 1), np.zeros(WIDTHS[-1] - 1)

    def width(self, rows: int, left: int, ready: Callable[[int], bool]) -> int:
        """Tokens that a round of ``rows`` rows should check, drafts and one; ``left`` rounds or fewer will follow.

        ``ready`` says of a width whether it runs at full speed at once: another must be worth its recording.
        """
        costs = self._costs.of(rows)
        hoped, seen = (self._tokens(chance) * costs[0] / costs for chance in (_HOPE, 0.0))
        best, most = 1, _GAIN
        for width, hope, sure in zip(WIDTHS[1:], hoped[1:], seen[1:], strict=True):
            gain = hope if ready(width) else _after(_SETUP, hope if width == _PROBE else sure, left)
            if gain > most:
                best, most = width, gain
        return best

    def saw(self, width: int, accepted: NDArray[np.int64]) -> None:
        """What became of the drafts of a round of ``width``, row by row: so many were accepted."""
        keep = 1 - 1 / _MEMORY
        self._tried *= keep
        self._passed *= keep
        if width > 1:
            # A place was tried where all before it passed.
            places = np.arange(width - 1)
            self._tried[: width - 1] += (accepted[:, None] >= places).sum(0)
            self._passed[: width - 1] += (accepted[:, None] > places).sum(0)

    def _tokens(self, chance: float) -> NDArray[np.float64]:
        """Expected of a row in a round, by ``WIDTHS``: one, and each draft if all up to it pass. What was not tried has
        the chance of the place before it, the first this ``chance``."""
        reached, total, found = 1.0, 1.0, [1.0]
        for tried, passed in zip(self._tried, self._passed, strict=True):
            chance = (passed + 2 * chance) / (tried + 2)
            reached *= chance
            total += reached
            found.append(total)
        return np.array([found[width - 1] for width in WIDTHS])


def _after(setup: float, gain: float, left: int) -> float:
    """What is left of ``gain`` where ``setup`` rounds are spent before ``left`` of them."""
    return left / (left / max(gain, 1e-9) + setup)
