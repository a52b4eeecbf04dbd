"""How drafts come about, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

MOST_COPIED = 15
"""Where as many are copied as pay."""

COPIED_BELOW = 3
"""For the smallest drafter, where as much is drafted as pays."""


Matrix = tuple[tuple[int, ...], ...]
"""Of n drafters: n + 1 rows, of n + 1, n, ... 1 numbers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``copied`` tokens are drafted by copying; over these ``rounds`` of each drafter, the largest first; ``tail`` more
    are copied behind theirs. ``lenience``: drafters pass what they give a probability over 1 / this, "auto": what has
    most accepted. ``adaptive``: as much is drafted as pays: by the largest drafter in at most its rounds, or by
    copying, whatever ``copied`` says. ``given``: a ``matrix`` of which these are some."""

    copied: int = 0
    rounds: tuple[int, ...] = ()
    tail: int = 0
    lenience: float | Literal["auto"] = 1.0
    adaptive: bool = False
    given: Matrix = ()

    @classmethod
    def of_matrix(cls, matrix: Matrix, lenience: float | Literal["auto"]) -> Plan:
        """Of what is ``given``."""
        rounds, tail = tuple(row[0] for row in matrix[:-1]), matrix[0][-1] if matrix[1:] else 0
        return cls(matrix[-1][0], rounds, tail, lenience, given=matrix)

    @property
    def matrix(self) -> Matrix:
        """Who drafts for whom (k of arXiv 2312.11462, in rounds instead of tokens): a row for the target and for each
        drafter, the largest first. In it are rounds of each smaller one, the next smaller first, whose drafts follow
        each other, and how many tokens are copied behind these."""
        if self.given:
            return self.given
        number = len(self.rounds)
        above = [(own, *[0] * (number - 1 - at), 0 if at else self.tail) for at, own in enumerate(self.rounds)]
        return (*above, (self.copied,))

    def drafted_for(self, level: int) -> int:
        """Tokens that are drafted for the target (0) or a drafter (1, 2, ...) at once, at most: in every round a
        drafter writes what was drafted for it, and one token."""
        *rounds, copied = self.matrix[level] if self.rounds else (self.copied + self.tail,)
        return copied + sum(one * (self.drafted_for(level + at) + 1) for at, one in enumerate(rounds, 1) if one)

    def behind(self, level: int) -> int:
        """Tokens that come behind the drafts of a drafter (1, 2, ...) before it reads again, at most, but for one of
        each model above it."""
        found = 0
        for above in range(level):
            *rounds, copied = self.matrix[above]
            later = list(enumerate(rounds, above + 1))[level - above :]
            found += copied + sum(one * (self.drafted_for(at) + 1) for at, one in later if one)
        return found

    @property
    def passes(self) -> list[int]:
        """Of each drafter in a round of the target."""
        calls = [1]
        for level in range(1, len(self.matrix)):
            calls.append(sum(calls[above] * self.matrix[above][level - above - 1] for above in range(level)))
        return calls[1:]

    @property
    def most(self) -> int:
        """Tokens that the target checks at once, at most."""
        return self.drafted_for(0)

    @property
    def copies(self) -> bool:
        """Whether anything is copied."""
        return bool(self.adaptive or any(row[-1] for row in self.matrix))

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

    def of(self, *which: int) -> Plan:
        """The plan with these of its drafters (0, 1, ...), if any; without them, copies alone."""
        if which and self.given:
            kept = [0, *(one + 1 for one in which)]
            rows = [[row[one - at - 1] for one in kept if one > at] + [row[-1]] for at, row in enumerate(self.given)]
            for at in kept[:-1]:  # who is left drafts as often as who is gone: fewer tokens than that one did
                rows[at][0] = rows[at][0] or self.given[at][0]
            return self.of_matrix(tuple(tuple(rows[one]) for one in kept), self.lenience)
        if which:
            return replace(self, rounds=tuple(self.rounds[one] for one in which))
        return Plan(MOST_COPIED if self.adaptive else max(self.copied, self.tail), adaptive=self.adaptive)
