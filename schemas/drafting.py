"""How drafts come about, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Plan:
    """``copied`` tokens are drafted by copying; over these ``rounds`` of each drafter, the largest first; ``tail`` more
    are copied behind theirs. ``lenience``: drafters pass what they give a probability over 1 / this. ``adaptive``: as
    much is drafted as pays: by the largest drafter in at most its rounds, or, where that does not pay, by copying."""

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

    def shorter(self) -> Iterator[Plan]:
        """The plan with 1, 2, 4... rounds of the largest drafter, up to its own."""
        rounds = 1
        while self.rounds and rounds <= self.rounds[0]:
            yield replace(self, rounds=(rounds, *self.rounds[1:]))
            rounds *= 2
