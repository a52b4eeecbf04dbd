"""How drafts come about, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

MOST_COPIED = 15
"""Where as many are copied as pay."""

COPIED_BELOW = 3
"""For the smallest drafter, where as much is drafted as pays."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``copied`` tokens are drafted by copying; over these ``rounds`` of each drafter, the largest first; ``tail`` more
    are copied behind theirs. ``lenience``: drafters pass what they give a probability over 1 / this. ``adaptive``: as
    much is drafted as pays: by the largest drafter in at most its rounds, or by copying, whatever ``copied`` says."""

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

    @property
    def room(self) -> int:
        """The same, whichever way a round goes."""
        return max(self.most, MOST_COPIED) if self.adaptive else self.most

    def shorter(self) -> Iterator[Plan]:
        """The plan with 1, 2, 4... rounds of the largest drafter, and with its own."""
        rounds = 1
        while self.rounds and rounds < self.rounds[0]:
            yield replace(self, rounds=(rounds, *self.rounds[1:]))
            rounds *= 2
        if self.rounds:
            yield self

    def of(self, *rounds: int) -> Plan:
        """The plan with these rounds of those drafters that there are; without any, copies alone."""
        if rounds:
            return replace(self, rounds=rounds)
        return Plan(MOST_COPIED if self.adaptive else self.copied, adaptive=self.adaptive)
