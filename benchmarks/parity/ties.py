"""Is a mismatch a tie? Decisions that are all but even in float64 are turned, one after the other, until it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from benchmarks.parity.cases import Case, same
from benchmarks.parity.scorer import Scoring

MARGIN = 1e-4
"""Nats. Half of the float32 digits of a loss of 10 are gone well before this."""

RUNS = 40
"""Most attempts for one case."""


@dataclass(frozen=True, slots=True)
class Tie:
    """The first decision that came out otherwise, and how close it was in float64."""

    what: str
    margin: float


@dataclass(slots=True)
class Turning:
    """Counts the decisions of a run, turns those in ``turned``, and notes which others could be."""

    turned: frozenset[int]
    close: dict[int, Tie] = field(default_factory=dict)
    seen: int = 0

    def scores(self, scores: Sequence[float]) -> Sequence[float]:
        """Neighbours in rank whose scores are closer than the margin could stand the other way round."""
        found = list(scores)
        order = sorted(range(len(found)), key=lambda place: found[place])
        for one, two in pairwise(order):
            if self._turns(found[two] - found[one], f"the order of texts {one} and {two}"):
                found[one], found[two] = found[two], found[one]
        return found

    def values(self, values: torch.Tensor, valid: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
        """The value that the threshold is taken from, and the next one above it, could change places."""
        for row in range(len(values)):
            places = torch.nonzero(valid[row])[:, 0]
            count, ratio = len(places), float(ratios[row])
            last = max(0, min(count - 1, int(count * ratio) - 1))
            if ratio == 1 or not last or last >= count:
                continue
            ranked = values[row, places].sort(descending=True)
            above, at = places[ranked.indices[last - 1]], places[ranked.indices[last]]
            if self._turns(float(values[row, above] - values[row, at]), "a token at the threshold"):
                values = values.clone()
                values[row, [int(above), int(at)]] = values[row, [int(at), int(above)]]
        return values

    def _turns(self, margin: float, what: str) -> bool:
        number, self.seen = self.seen, self.seen + 1
        if number in self.turned:
            return True
        if 0 < margin < MARGIN:
            self.close[number] = Tie(what, margin)
        return False


def find_tie(case: Case, ours: str, scoring: Scoring) -> Tie | str:
    """The tie that parts ``ours`` from the library's text; or what parts them, where it is none."""
    runs = 0
    waiting: list[tuple[frozenset[int], Tie | None]] = [(frozenset(), None)]
    while waiting and runs < RUNS:
        turned, first = waiting.pop(0)
        turning = Turning(turned)
        text = scoring.compress_exactly(case, turning)
        runs += 1
        if text is not None and same(case, text):
            if first is not None:
                return first
            found = _first_turned(case, ours, scoring, turning)
            return found or "float64 gives the library's text, and no close decision gives ours"
        after = max(turned, default=-1)
        waiting += [(turned | {place}, first or tie) for place, tie in turning.close.items() if place > after]
    return _difference(case, ours)


def _first_turned(case: Case, ours: str, scoring: Scoring, turning: Turning) -> Tie | None:
    """The close decision that float32 turned, where float64 agrees with the library."""
    for place, tie in turning.close.items():
        if scoring.compress_exactly(case, Turning(frozenset({place}))) == ours:
            return tie
    return None


def _difference(case: Case, ours: str) -> str:
    if not isinstance(case.expected, str):
        return "another text"
    pairs = zip(case.expected, ours, strict=False)
    place = next((n for n, (one, two) in enumerate(pairs) if one != two), min(len(case.expected), len(ours)))
    begin = max(0, place - 30)
    return f"{case.expected[begin : place + 40]!r} became {ours[begin : place + 40]!r} (character {place})"
