"""The compressed prefixes of many documents at once: their tokens, and the keys and values of these tokens.

Row r holds ``length[r]`` tokens, of which the first ``cached[r]`` have keys and values. The last token is never cached:
its hidden state predicts the first token of whatever is scored next, so it always goes through the model again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.scoring import Scorer
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import on_device

Ints = NDArray[np.int64]


class Prefixes:
    """The prefixes of ``starts`` (at least one token each), ready to grow. No keys and values are computed yet."""

    def __init__(self, scorer: Scorer, starts: Sequence[Ints]) -> None:
        starts = [ids[-scorer.prefix :] for ids in starts]  # make_room drops more, should it not suffice
        self._scorer, self._passes = scorer, scorer.passes(len(starts))
        self.length = np.array([len(ids) for ids in starts], dtype=np.int64)
        self.cached = np.zeros(len(starts), dtype=np.int64)
        self._ids = np.zeros((len(starts), int(self.length.max())), dtype=np.int64)
        for row, ids in enumerate(starts):
            self._ids[row, : len(ids)] = ids

    def extend(self, rows: Ints, ids: Ints) -> None:
        """Append the tokens ``ids`` to the rows named beside them (``rows`` does not decrease)."""
        counts = np.bincount(rows, minlength=len(self.length))
        if (need := int((self.length + counts).max())) > self._ids.shape[1]:
            self._ids = np.pad(self._ids, ((0, 0), (0, need + 256 - self._ids.shape[1])))
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._ids[rows, self.length[rows] + within] = ids
        self.length = self.length + counts

    def make_room(self, rows: Ints, tokens: Ints) -> None:
        """Where ``tokens`` more would exceed ``Scorer.prefix``, go on from the last half of it, computed anew."""
        half = self._scorer.prefix // 2
        for row in rows[self.length[rows] + tokens > self._scorer.prefix].tolist():
            keep = min(half, int(self.length[row]))
            self._ids[row, :keep] = self._ids[row, self.length[row] - keep : self.length[row]].copy()
            self.length[row], self.cached[row] = keep, 0

    def catch_up(self, rows: Ints, most: int) -> None:
        """Compute keys and values until no row has more than ``most`` tokens without."""
        while len(late := rows[self.length[rows] - self.cached[rows] > most]):
            step = max(1, self._scorer.batch_tokens // len(late))
            self._forward(late, np.minimum(step, self.length[late] - 1 - self.cached[late]), None, None)

    def score(self, rows: Ints, segment: Ints, counts: Ints) -> NDArray[np.float32]:
        """Nats of every segment token after its row's prefix and the segment's own earlier tokens (equation 5).

        Row ``rows[i]``'s segment has ``counts[i]`` of the tokens in ``segment``. Keys and values of the prefix are
        reused, those of its new tokens computed and kept, those of the segment forgotten.
        """
        return self._forward(rows, self.length[rows] - self.cached[rows], segment, counts)

    def _forward(self, rows: Ints, feed: Ints, segment: Ints | None, counts: Ints | None) -> NDArray[np.float32]:
        """One pass over ``feed`` uncached tokens of each row and the segment after them; all but a row's last token
        of its prefix are cached."""
        cached, new = self.cached[rows], feed if counts is None else feed + counts
        row, place = ragged(new)
        asked = place >= feed[row]
        ids = self._ids[rows[row], np.minimum(cached[row] + place, self._ids.shape[1] - 1)]
        if segment is not None:
            ids[asked] = segment
        kept = np.minimum(feed, self.length[rows] - 1 - cached)
        hidden = self._passes.run(rows, on_device(ids, self._scorer.device), cached, new)
        self.cached[rows] = cached + kept
        if segment is None:
            return np.zeros(0, np.float32)
        return self._scorer.surprisal_at(hidden, np.flatnonzero(asked) - 1, segment)()
