"""What iterative compression is measured against: the whole text read once (equation 4 of arXiv 2310.05736)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.iterative import Stream
from pipeline.compression.reading import surprisals
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.compression.selection import margins

Floats = NDArray[np.float64]


def rank_once(scorer: Scorer, streams: Sequence[Stream], passed: Passed) -> list[Floats]:
    """As ``iterative.rank``, but that a unit is scored after the whole text before it, whatever is kept of that."""
    found = _read(scorer, streams, [stream.start for stream in streams], passed)
    contrasted = [stream for stream in streams if stream.contrast is not None]
    if contrasted:
        starts = [np.concatenate([one.contrast, one.start[1:]]) for one in contrasted if one.contrast is not None]
        after = _read(scorer, contrasted, starts, passed)
        found = [one - other for one, other in zip(found, after, strict=True)]
    return [_margins(stream, scores) for stream, scores in zip(streams, found, strict=True)]


def _read(
    scorer: Scorer, streams: Sequence[Stream], starts: Sequence[NDArray[np.int64]], passed: Passed
) -> list[Floats]:
    """Mean nats of every unit."""
    nats = surprisals(scorer, [np.append(start, one.ids) for start, one in zip(starts, streams, strict=True)], passed)
    return [
        np.add.reduceat(some[len(start) - 1 :].astype(np.float64), np.cumsum(one.counts) - one.counts) / one.counts
        for some, start, one in zip(nats, starts, streams, strict=True)
    ]


def _margins(stream: Stream, scores: Floats) -> Floats:
    """Equation (7), one threshold per segment."""
    rows, free = stream.segments, ~stream.locked
    if stream.weights is not None:
        scores = scores * stream.weights
    allowed: Floats = np.asarray(np.bincount(rows, weights=(stream.rates - stream.locked) * stream.costs), np.float64)
    found = np.full(len(scores), np.inf)
    first = None if stream.frame is None else stream.frame[free]
    found[free], _ = margins(scores[free], stream.costs[free], rows[free], allowed, first)
    return found
