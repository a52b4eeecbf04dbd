"""How lenient drafters are, by what the target accepted of them: a row keeps to one lenience, and rows differ.

How long a round takes does not hang on it, so the best is that by which most drafts pass the target: what rows of each
had accepted tells. As a bandit: some rows try any, the others take the best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

LENIENCES = np.array([1, 3, 10, 30], np.float32)
"""From strict to hardly any check."""

_ENOUGH = 24
"""Rounds of a row below which nothing is known."""

_TRIES = 8
"""Of so many rows one takes any."""

_MEMORY = 4096
"""Rounds of rows after which what was seen counts for a third."""


class Leniences:
    """Of one kind of drafts, kept from batch to batch."""

    def __init__(self) -> None:
        self._drawn = np.random.default_rng(0)
        self._rounds, self._accepted = (np.zeros(len(LENIENCES)) for _ in range(2))

    def choose(self, rows: int) -> Ints:
        """For rows that begin, places in ``LENIENCES``."""
        found: Ints = self._drawn.integers(len(LENIENCES), size=rows)
        if (self._rounds < _ENOUGH).any():  # each in turn
            found = (np.arange(rows) + found[0]) % len(LENIENCES)
        else:
            found[self._drawn.random(rows) >= 1 / _TRIES] = self.accepted.argmax()
        return found

    @property
    def accepted(self) -> NDArray[np.float64]:
        """Drafts in a round, by lenience."""
        return self._accepted / np.maximum(self._rounds, 1)

    def saw(self, chosen: Ints, accepted: Sequence[int] | Ints) -> None:
        """In a round so many drafts were accepted of rows with these leniences."""
        keep = (1 - 1 / _MEMORY) ** len(chosen)
        size = len(LENIENCES)
        self._rounds = keep * self._rounds + np.bincount(chosen, minlength=size)
        self._accepted = keep * self._accepted + np.bincount(chosen, np.asarray(accepted), size)
