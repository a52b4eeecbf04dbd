"""How drafts come about, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """``copied`` tokens are drafted by copying; over these ``rounds`` of each drafter, the largest first; ``tail`` more
    are copied behind theirs. ``lenience``: drafters pass what they give a probability over 1 / this. ``adaptive``: as
    many are copied as pay, at most ``copied``."""

    copied: int = 0
    rounds: tuple[int, ...] = ()
    tail: int = 0
    lenience: float = 1.0
    adaptive: bool = False

    @property
    def most(self) -> int:
        """Tokens that the target checks at once, at most: in every round a drafter writes what was drafted for it, and
        one token."""
        most = self.copied
        for rounds in self.rounds[::-1]:
            most = rounds * (most + 1)
        return most + self.tail
