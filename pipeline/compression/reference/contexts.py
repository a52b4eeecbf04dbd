"""The context filter: which contexts stay, in which order, and how far the rate of each is shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.reference import Order, ReferenceOptions

AFTERTHOUGHT = " We can get the answer to this question in the given documents."
"""What the library adds to the question when contexts are ranked by it."""

LEAST = 100
"""The budget of context and sentence filter where the whole's is negative, in tokens."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Places of the contexts that stay, in output order, and a shift of the ratio for each."""

    used: tuple[int, ...]
    shifts: tuple[float, ...]


def ranked(scores: Sequence[float], condition: str) -> list[int]:
    """Places by score: the highest first, or the lowest where the score is of the question given the text.

    Scores may be nan (texts of one token have none); the order is then what Python's sort makes of it, as there.
    """
    sign = -1 if condition == "none" else 1
    return [place for place, _ in sorted(enumerate(scores), key=lambda one: sign * one[1])]


def choose(
    scores: Sequence[float],
    lengths: Sequence[int],
    target: float,
    options: ReferenceOptions,
    forced: Sequence[int] = (),
) -> Choice:
    """Contexts by rank until they exceed their budget; the one that crosses it stays too.

    ``forced`` contexts are there beforehand and cost nothing unless they are ranked high enough, too.
    """
    left = options.context_limit(LEAST if target < 0 else target)
    used = list(options.force_context_ids or ())
    used += [place for place in forced if place not in used]
    for place in ranked(scores, options.condition):
        left -= lengths[place]
        if place not in used:
            used.append(place)
        if left < 0 or (options.force_context_number is not None and options.force_context_number <= 0):
            break
    ordered = reordered(used, options.reorder_context)
    shift_of = dict(zip(used, _shifts(len(used), options.dynamic_context_compression_ratio), strict=True))
    return Choice(
        tuple(place for place in ordered if place < len(lengths)), tuple(shift_of[place] for place in ordered)
    )


def reordered(used: Sequence[int], order: Order) -> list[int]:
    """In the original order; or even ranks, then odd ones backwards (the best at both ends); or by rank."""
    if order == "original":
        return sorted(used)
    return [*used[::2], *used[1::2][::-1]] if order == "two_stage" else list(used)


def _shifts(count: int, spread: float) -> list[float]:
    """From ``spread`` for the first rank down to ``-spread`` for the last, in equal steps."""
    if spread <= 0 or count < 2:
        return [0.0] * count
    step = abs(spread) / (count - 1)
    return [place * step for place in range(count - 1, -count, -2)]
