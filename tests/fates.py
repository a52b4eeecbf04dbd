"""What strikes a training in the middle: a stop, or a kill."""

from __future__ import annotations

import numpy as np


class Killed(BaseException):
    """Strikes like SIGKILL: nothing is saved on the way out."""


class Fate:
    """Lets an attempt live for ``least`` to ``most`` looks at ``stopping``, then stops it, or kills it."""

    def __init__(self, random: np.random.Generator, least: int, most: int) -> None:
        self.lives, self.kill = int(random.integers(least, most + 1)), bool(random.integers(2))

    def __call__(self) -> bool:
        self.lives -= 1
        if self.lives < 0 and self.kill:
            raise Killed
        return self.lives < 0
