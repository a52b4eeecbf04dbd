"""Iterative token-level prompt compression (arXiv 2310.05736, section 3.2, Algorithm 2), many documents abreast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.compression.contrast import Contrasted
from pipeline.compression.prefix import Prefixes
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.compression.selection import margins
from pipeline.compression.units import MAX_TOKENS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CACHE = {"cpu": 4, "cuda": 16}
"""Most cached tokens over ``batch_tokens``: bounds the keys and values of the documents that go abreast."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one document sends through the iterations.

    ``start`` goes before everything (start token, verbatim instruction). Unit i has ``counts[i]`` of the scorer's
    tokens in ``ids``, costs ``costs[i]`` of the target's, may keep the share ``rates[i]`` of them, and is decided on in
    segment ``segments[i]`` (0, 1, ... without gaps). A ``locked`` unit is kept and not ranked; what it costs is taken
    off what the others of its segment, and then of later ones, may keep. Surprisals are multiplied by ``weights``,
    where there are some. Units of the ``frame`` are the last of their segment to go. ``contrast``: tokens of a
    question, start token first; what counts is the surprisal after ``start`` less that after ``contrast`` and
    ``start``.
    """

    start: Ints
    ids: Ints
    counts: Ints
    costs: Ints
    rates: Floats
    segments: Ints
    locked: NDArray[np.bool_]
    weights: Floats | None = None
    frame: NDArray[np.bool_] | None = None
    contrast: Ints | None = None


def segment_of(counts: Ints, groups: Ints, size: int) -> Ints:
    """The segment of each unit: ``size`` tokens each, counted anew where ``groups`` changes; units are never split."""
    fresh = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    begins = np.cumsum(counts) - counts
    within = begins - np.repeat(begins[fresh], np.diff(np.append(fresh, len(counts))))
    place = within // size
    changed = (np.diff(place, prepend=0) != 0) | (np.diff(groups, prepend=groups[:1]) != 0)
    return np.cumsum(changed)


@torch.inference_mode()
def rank(scorer: Scorer, streams: Sequence[Stream], size: int, passed: Passed) -> list[Floats]:
    """For every unit of every stream how far its surprisal lies above its segment's threshold (kept: positive).

    ``size`` is the segments' length in tokens. Either all streams have a contrast or none.
    """
    order = sorted(range(len(streams)), key=lambda place: (-_steps(streams[place]), -len(streams[place].ids)))
    ordered = [streams[place] for place in order]
    ranked = run_packed(
        _widths(scorer, ordered, size),
        scorer.batch_tokens,
        lambda rows: _Iteration(scorer, [ordered[row] for row in rows], passed).run(),
    )
    found = dict(zip(order, ranked, strict=True))
    return [found[place] for place in range(len(streams))]


def _steps(stream: Stream) -> int:
    return int(stream.segments[-1]) + 1 if len(stream.segments) else 0


def _widths(scorer: Scorer, streams: Sequence[Stream], size: int) -> list[int]:
    """What each document takes of a batch's tokens: a pass holds a segment and what was kept of the one before.

    Not increasing, so that documents go abreast in the order of ``streams``, those with most segments first.
    """
    need = [min(scorer.prefix, len(one.start) + int((one.rates * one.counts).sum())) for one in streams]
    share = CACHE[scorer.device.type]
    most = np.maximum.accumulate(need[::-1])[::-1].tolist()
    readings = 1 if streams and streams[0].contrast is None else 2
    return [readings * max(2 * (size + MAX_TOKENS), -(-held // share)) for held in most]


class _Iteration:
    """Streams, the one with most segments first, on their way through the model together."""

    def __init__(self, scorer: Scorer, streams: Sequence[Stream], passed: Passed) -> None:
        self._passed = passed
        self._prefixes = _prefixes(scorer, streams)
        self._most = max(1, scorer.batch_tokens // len(streams) // 2)
        self._spare = np.zeros(len(streams))
        lengths = np.array([len(stream.counts) for stream in streams])
        rows = np.repeat(np.arange(len(streams)), lengths)
        segments = np.concatenate([stream.segments for stream in streams])
        self._units = lengths
        self._order = np.lexsort((rows, segments))  # by step, then by row; the order within a segment stays
        self._rows = rows[self._order]
        self._counts = np.concatenate([stream.counts for stream in streams])[self._order]
        self._costs = np.concatenate([stream.costs for stream in streams])[self._order]
        self._rates = np.concatenate([stream.rates for stream in streams])[self._order]
        self._locked = np.concatenate([stream.locked for stream in streams])[self._order]
        self._weights = np.concatenate([_weights(stream) for stream in streams])[self._order]
        self._frame = np.concatenate([_frame(stream) for stream in streams])[self._order]
        self._steps = np.searchsorted(segments[self._order], np.arange(int(segments.max()) + 2))
        ids = np.concatenate([stream.ids for stream in streams])
        first = np.cumsum(np.concatenate([stream.counts for stream in streams]))[self._order] - self._counts
        self._ids = ids[_ragged(first, self._counts)]
        self._tokens = np.append(0, np.cumsum(self._counts))
        self._margins = np.zeros(len(rows))

    def run(self) -> list[Floats]:
        """Margins per stream, per unit."""
        for step in range(len(self._steps) - 1):
            self._segment(int(self._steps[step]), int(self._steps[step + 1]))
        margins_by_unit = np.empty_like(self._margins)
        margins_by_unit[self._order] = self._margins
        return np.split(margins_by_unit, np.cumsum(self._units)[:-1])

    def _segment(self, first: int, last: int) -> None:
        """One segment of every document that still has one: score it, decide, and put what is kept into the prefix."""
        unit_rows, counts = self._rows[first:last], self._counts[first:last]
        ids = self._ids[self._tokens[first] : self._tokens[last]]
        rows, local = np.unique(unit_rows, return_inverse=True)
        lengths = np.bincount(local, weights=counts).astype(np.int64)
        self._prefixes.make_room(rows, lengths)
        kept = self._decide(first, last, self._scores(first, last, rows, local, lengths), rows, local)
        tokens = np.repeat(kept, counts)
        self._prefixes.extend(np.repeat(unit_rows, counts)[tokens], ids[tokens])

    def _scores(self, first: int, last: int, rows: Ints, local: Ints, lengths: Ints) -> Floats:
        """Mean nats of every unit, times its weight. Where all of a row's segment stays anyway, nothing is scored."""
        open_rows = _undecided(self._locked[first:last], local)
        asked = open_rows[local]
        found = np.zeros(last - first)
        if not asked.any():
            return found
        counts = self._counts[first:last][asked]
        ids = self._ids[self._tokens[first] : self._tokens[last]][np.repeat(asked, self._counts[first:last])]
        self._prefixes.catch_up(rows[open_rows], self._most)
        nats = self._prefixes.score(rows[open_rows], ids, lengths[open_rows]).astype(np.float64)
        self._passed(len(ids))
        found[asked] = np.add.reduceat(nats, np.cumsum(counts) - counts) / counts
        scores: Floats = found * self._weights[first:last]
        return scores

    def _decide(self, first: int, last: int, scores: Floats, rows: Ints, local: Ints) -> NDArray[np.bool_]:
        """Equation (7). A segment may spend its own share and what the ones before it left unspent."""
        locked, costs = self._locked[first:last], self._costs[first:last]
        scores = np.where(locked, np.inf, scores)
        share = np.bincount(local, weights=self._rates[first:last] * costs - locked * costs)
        free = ~locked
        allowed, frame = self._spare[rows] + share, self._frame[first:last]
        above, self._spare[rows] = margins(scores[free], costs[free], local[free], allowed, frame[free])
        self._margins[first:last][free] = above
        self._margins[first:last][locked] = np.inf
        return self._margins[first:last] > 0


def _undecided(locked: NDArray[np.bool_], local: Ints) -> NDArray[np.bool_]:
    """The rows in which anything may go."""
    found: NDArray[np.bool_] = np.bincount(local, weights=~locked) > 0
    return found


def _prefixes(scorer: Scorer, streams: Sequence[Stream]) -> Prefixes:
    starts = [stream.start for stream in streams]
    contrasts = [stream.contrast for stream in streams if stream.contrast is not None]
    return Contrasted(scorer, starts, contrasts) if contrasts else Prefixes(scorer, starts)


def _weights(stream: Stream) -> Floats:
    return np.ones(len(stream.counts)) if stream.weights is None else stream.weights


def _frame(stream: Stream) -> NDArray[np.bool_]:
    return np.zeros(len(stream.counts), dtype=bool) if stream.frame is None else stream.frame


def _ragged(first: Ints, counts: Ints) -> Ints:
    """first[0], first[0] + 1, ... (counts[0] of them), first[1], ..."""
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
