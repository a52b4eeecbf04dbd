"""Shares of a budget: passages with a rate of their own, and by wish paragraphs and sentences, each get theirs.

One number per unit serves all shares at once: how far its region has spent its allowance when the unit is kept, the
best units of the region first. Whatever the whole budget is, the units under one threshold of this load spend every
allowance in the same proportion: exactly the allowances where the budget is their sum, less of each where it is
smaller, more of each where it is larger. The fit may add a unit where something is left over, so a region exceeds its
share by one unit at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.selection import running_sums

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quota:
    """``regions[u]``: the region of unit u, -1 where it has no part in the sharing (what stays verbatim anyway).

    ``allowances[r]``: tokens of the target's tokenizer that region r may keep. ``levels``: numbers of the paragraphs
    and of the sentences that the units begin in, where these have budgets of their own.
    """

    regions: Ints
    allowances: Floats
    levels: tuple[Ints, ...] = ()

    def loads(self, margins: Floats, costs: Ints, forced: Bools) -> Floats:
        """Margins within regions -> margins for the whole prompt: the highest, as many as fit, keep to the shares.

        ``forced`` units come first and spend their region's allowance. What has ``-inf`` or nan keeps it.
        """
        quota = self._deepened(margins, costs, forced) if self.levels else self
        shared = quota.regions >= 0
        some = np.flatnonzero(shared & ~forced & np.isfinite(margins))
        order = some[np.lexsort((-margins[some], quota.regions[some]))]
        regions = quota.regions[order]
        spent = np.bincount(
            quota.regions[shared & forced], weights=costs[shared & forced], minlength=len(quota.allowances)
        )
        found = np.where(np.isnan(margins), np.nan, -np.inf)
        found[order] = -(running_sums(costs[order], regions) + spent[regions]) / quota.allowances[regions]
        return found

    def _deepened(self, margins: Floats, costs: Ints, forced: Bools) -> Quota:
        """Each region's allowance handed on to its paragraphs, and theirs to their sentences."""
        some = (self.regions >= 0) & (forced | np.isfinite(margins))
        value = _importance(margins, forced)
        quota = replace(self, regions=np.where(some, self.regions, -1))
        for level in self.levels:
            quota = _handed_on(quota, level, costs, value)
        return quota


def _importance(margins: Floats, forced: Bools) -> Floats:
    """From 0 to 1 by rank among all units: comparable whatever a method's scores are. What must stay has 1."""
    value = np.ones(len(margins))
    ranked = np.flatnonzero(np.isfinite(margins) & ~forced)
    value[ranked[np.argsort(margins[ranked], kind="stable")]] = (np.arange(len(ranked)) + 0.5) / max(1, len(ranked))
    return value


def _handed_on(quota: Quota, level: Ints, costs: Ints, value: Floats) -> Quota:
    """Allowances of groups within regions: by length times mean importance, but none more than its length."""
    some = np.flatnonzero(quota.regions >= 0)
    width = int(level.max(initial=0)) + 1
    pairs, groups = np.unique(quota.regions[some] * width + level[some], return_inverse=True)
    parents, count = pairs // width, len(pairs)
    lengths = np.bincount(groups, weights=costs[some], minlength=count).astype(np.float64)
    wanted = np.bincount(groups, weights=costs[some] * value[some], minlength=count).astype(np.float64)
    allowances = _filled(quota.allowances, parents, wanted, lengths)
    regions = np.full(len(level), -1)
    regions[some] = groups
    return Quota(regions, np.maximum(allowances, TINY), quota.levels)


TINY = 1e-9
"""The least allowance: a region that may keep nothing comes after all others."""


def _filled(totals: Floats, parents: Ints, wanted: Floats, most: Floats) -> Floats:
    """``totals`` of parents handed to their children in proportion to ``wanted``; what exceeds ``most`` goes on."""
    given = np.zeros(len(wanted))
    open_ = wanted > 0
    while open_.any():
        left = totals - np.bincount(parents, weights=given, minlength=len(totals))
        asked = np.bincount(parents[open_], weights=wanted[open_], minlength=len(totals))
        scale = np.divide(left, asked, out=np.zeros(len(totals)), where=asked > 0)
        share = np.where(open_, wanted * scale[parents], 0)
        over = open_ & (share > most)
        if not over.any():
            return np.where(open_, share, given)
        given[over] = most[over]
        open_ &= ~over
    return given


def shared_out(total: float, weights: Sequence[float]) -> list[float]:
    """``total`` in proportion to ``weights``; at least ``TINY`` of each."""
    whole = sum(weights)
    return [max(TINY * weight, max(0.0, total) * weight / whole) for weight in weights]
