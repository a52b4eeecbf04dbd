"""Prompts -> the streams of tokens that a scorer reads, and margins of streams back to those of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.iterative import Stream, segment_of
from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.widths import parted

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SETTLED = -1e6
"""Margin of what was removed before any scoring: under all that was scored, over nothing."""

FRAMED = -SETTLED
"""Added to the margins of a frame's units: over all that was scored, in whatever segment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a prompt is read: which parts, in which order, at which rate each.

    ``weights``: one number per unit of the prompt, by which its surprisal is multiplied. ``gone``: units that are not
    read, because they are removed already. ``frame``: units that are the last to go. ``contrast`` as in ``Stream``.
    ``apart``: no segment spans two contexts.
    """

    scored: tuple[int, ...]
    rates: tuple[float, ...]
    weights: Floats | None = None
    gone: NDArray[np.bool_] | None = None
    frame: NDArray[np.bool_] | None = None
    contrast: Ints | None = None
    apart: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part or a separator on its way into a stream. Segments never span two groups (equation 6 has one rate each)."""

    ids: Ints
    counts: Ints
    costs: Ints
    rates: Floats
    locked: NDArray[np.bool_]
    weights: Floats
    frame: NDArray[np.bool_]
    group: str


@dataclass(frozen=True, slots=True)
class Streams:
    """``start``: the start token; ``separator``: the tokens of a blank line; ``size``: tokens in a segment."""

    start: int
    separator: Ints
    size: int

    def of(self, prompts: Sequence[Prompt], plans: Sequence[Plan]) -> list[Stream]:
        """Of each prompt the parts to be scored, a locked separator before each that has something before it."""
        starts = [self._start(*one) for one in zip(prompts, plans, strict=True)]
        pieces = [self._pieces(*one) for one in zip(prompts, plans, strict=True)]
        return _joined(starts, pieces, plans, self.size) if pieces else []

    def _start(self, prompt: Prompt, plan: Plan) -> Ints:
        before = [part for part in prompt.parts[: min(plan.scored)] if part.verbatim]
        return np.concatenate([[self.start], *(ids for part in before for ids in (part.ids, self.separator))])

    def _pieces(self, prompt: Prompt, plan: Plan) -> list[_Piece]:
        bounds = _bounds(prompt)
        pieces: list[_Piece] = []
        for place, rate in zip(plan.scored, plan.rates, strict=True):
            if pieces:
                pieces.append(self._blank(pieces[-1].group))
            pieces.append(_piece(prompt.parts[place], place, slice(bounds[place], bounds[place + 1]), rate, plan))
        return pieces

    def _blank(self, group: str) -> _Piece:
        one, locked, frame = np.ones(1), np.ones(1, bool), np.zeros(1, bool)
        counts, costs = np.array([len(self.separator)]), np.zeros(1, np.int64)
        return _Piece(self.separator, counts, costs, one, locked, one, frame, group)


def spread(prompt: Prompt, plan: Plan, ranked: Floats | None) -> Floats:
    """Margins of a stream's units (None: it had none) -> margins of all the prompt's units; -inf in parts not read."""
    bounds = _bounds(prompt)
    found, place = np.full(bounds[-1], -np.inf), 0
    for number, part in enumerate(plan.scored):
        assert ranked is not None
        place += number > 0  # the separator
        units = slice(bounds[part], bounds[part + 1])
        read = np.ones(units.stop - units.start, bool) if plan.gone is None else ~plan.gone[units]
        count = int(np.count_nonzero(read))
        found[units] = SETTLED
        found[units][read] = ranked[place : place + count]
        place += count
    if plan.frame is not None:
        found[plan.frame] += FRAMED
    return found


def _piece(part: Part, place: int, units: slice, rate: float, plan: Plan) -> _Piece:
    """Part number ``place``; ``units`` are its own among all of the prompt."""
    counts, costs, locked = part.counts, part.costs, part.forced
    weights = np.ones(len(counts)) if plan.weights is None else plan.weights[units]
    frame = np.zeros(len(counts), bool) if plan.frame is None else plan.frame[units]
    group = f"{part.role} {place}" if plan.apart else part.role
    if plan.gone is None:
        return _Piece(part.ids, counts, costs, _rates(part, rate, part.length), locked, weights, frame, group)
    read = ~plan.gone[units]
    ids, rates = part.ids[np.repeat(read, counts)], _rates(part, rate, int(costs[read].sum()))
    return _Piece(ids, counts[read], costs[read], rates[read], locked[read], weights[read], frame[read], group)


def _rates(part: Part, rate: float, costs: int) -> Floats:
    """The rates of units: their own, else the part's, raised by what is gone already (all but ``costs``)."""
    raised = min(1.0, rate * part.length / costs) if costs else rate
    return np.where(np.isnan(part.rates), raised, part.rates)


def _joined(
    starts: Sequence[Ints], pieces: Sequence[Sequence[_Piece]], plans: Sequence[Plan], size: int
) -> list[Stream]:
    """A stream of each prompt's ``pieces``. Those of all prompts are laid end to end: segments are counted once."""
    every = list(chain.from_iterable(pieces))
    names: dict[tuple[int, str], int] = {}
    groups = [names.setdefault((row, piece.group), len(names)) for row, some in enumerate(pieces) for piece in some]
    tokens = np.array([sum(len(piece.ids) for piece in some) for some in pieces])
    units = np.array([sum(len(piece.counts) for piece in some) for some in pieces])
    counts = np.concatenate([piece.counts for piece in every])
    columns = (
        counts,
        np.concatenate([piece.costs for piece in every]),
        np.concatenate([piece.rates for piece in every]),
        segment_of(counts, np.repeat(groups, [len(piece.counts) for piece in every]), size),
        np.concatenate([piece.locked for piece in every]),
        np.concatenate([piece.weights for piece in every]),
        np.concatenate([piece.frame for piece in every]),
    )
    ids = parted(np.concatenate([piece.ids for piece in every]), tokens)
    rows = zip(starts, ids, *(parted(column, units) for column in columns), plans, strict=True)
    return [
        Stream(
            start, own, counts, costs, rates, segments - segments[:1], locked,
            None if plan.weights is None else weights, None if plan.frame is None else frame, plan.contrast,
        )
        for start, own, counts, costs, rates, segments, locked, weights, frame, plan in rows
    ]  # fmt: skip


def _bounds(prompt: Prompt) -> list[int]:
    """Where the units of each part begin among all of the prompt, and where they end."""
    return [0, *accumulate(len(part.places) for part in prompt.parts)]
