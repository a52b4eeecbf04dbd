"""How far drafts pass, place by place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Chances:
    """Whether drafts pass, by their place: an estimate as of survival (Kaplan and Meier, 1958), of which what lies
    ``memory`` rounds back counts for a third."""

    def __init__(self, places: int, memory: int) -> None:
        self.number, self._keep = 0, 1 - 1 / memory
        self._tried, self._passed = [0.0] * places, [0.0] * places

    def fade(self) -> None:
        """A round has gone by."""
        self._tried = [self._keep * one for one in self._tried]
        self._passed = [self._keep * one for one in self._passed]

    def saw(self, drafted: Ints, accepted: Ints) -> None:
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
