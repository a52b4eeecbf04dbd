"""Which contexts and which units are kept. Pure array work over all documents of a batch at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def choose_contexts(surprise: Floats, lengths: Ints, limit: float) -> Ints:
    """The budget controller's coarse choice (Algorithm 1): places of the contexts to keep, in their original order.

    Contexts are taken by descending perplexity (here its logarithm, the mean negative log-likelihood; ties: the
    earlier one first) until those taken exceed ``limit`` = k * tau_dems * L_dems; the one that crosses it is kept.
    """
    if limit <= 0:
        return np.zeros(0, np.int64)
    ranking = np.argsort(-surprise, kind="stable")
    before = np.cumsum(lengths[ranking]) - lengths[ranking]
    return np.sort(ranking[before <= limit])


def margins(
    scores: Floats, costs: Ints, rows: Ints, allowed: Floats, first: Bools | None = None
) -> tuple[Floats, Floats]:
    """Equation (7) for one segment of many documents: how far each unit lies above its segment's threshold.

    ``rows`` (not decreasing) says to which segment a unit belongs; segment r may keep units of ``allowed[r]`` tokens in
    all. Those that come ``first`` are kept before all others of their segment, and have a threshold of their own.
    Returns the score less gamma, the threshold (kept: positive), and per segment the tokens left unspent.
    """
    first = np.zeros(len(scores), dtype=bool) if first is None else first
    places = (2 * rows + ~first).astype(np.min_scalar_type(2 * len(allowed)))  # numpy sorts short integers by digits
    order = np.lexsort((-scores, places))
    sorted_rows, sorted_costs = rows[order], costs[order]
    fits = running_sums(sorted_costs, sorted_rows) <= allowed[sorted_rows]
    spent = np.bincount(sorted_rows, weights=sorted_costs * fits, minlength=len(allowed))
    kept = np.zeros(len(scores), dtype=bool)
    kept[order] = fits
    groups = 2 * rows + first
    gamma = _thresholds(scores, groups, kept, 2 * len(allowed))
    above = scores - gamma[groups]
    tiny = np.finfo(np.float64).tiny  # equal scores on both sides of the threshold: the order decides
    return np.where(kept, np.maximum(above, tiny), np.minimum(above, -tiny)), allowed - spent


def running_sums(values: NDArray[Any], rows: Ints) -> NDArray[Any]:
    """Cumulative sums that start anew with each row; ``rows`` does not decrease."""
    total = np.cumsum(values)
    fresh = np.flatnonzero(np.diff(rows, prepend=-1))
    before = total[fresh] - values[fresh]
    sums: NDArray[Any] = total - np.repeat(before, np.diff(np.append(fresh, len(rows))))
    return sums


def _thresholds(scores: Floats, rows: Ints, kept: NDArray[np.bool_], count: int) -> Floats:
    """Midway between the lowest kept and the highest removed score of each row; just outside where it has only one."""
    lowest = np.full(count, np.inf)
    np.minimum.at(lowest, rows[kept], scores[kept])
    highest = np.full(count, -np.inf)
    np.maximum.at(highest, rows[~kept], scores[~kept])
    middle = np.where(np.isinf(highest), lowest, np.where(np.isinf(lowest), highest, 0.0))
    both = ~np.isinf(highest) & ~np.isinf(lowest)
    middle[both] = (lowest[both] + highest[both]) / 2
    return np.where(np.isinf(middle), 0.0, middle)
