"""Prefixes read twice: without and with the question before them (LongLLMLingua, arXiv 2310.06839, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.prefix import Prefixes
from pipeline.compression.scoring import Scorer

Ints = NDArray[np.int64]


class Contrasted(Prefixes):
    """Row r of n is a prefix as it is, row n + r the same after ``questions[r]``; both grow alike.

    Both begin with a start token, which the second has from its question. What is asked and done is in terms of the
    first n rows. However long the compressed text gets, the question stays
    before it: at most a quarter of ``Scorer.prefix``, its end where it is longer.
    """

    def __init__(self, scorer: Scorer, starts: Sequence[Ints], questions: Sequence[Ints]) -> None:
        most = scorer.prefix // 4
        questions = [one[-most:] for one in questions]
        whole = [
            np.concatenate([question, start[1:][-(scorer.prefix - len(question)) :]])
            for question, start in zip(questions, starts, strict=True)
        ]
        super().__init__(scorer, [*starts, *whole])
        self._most_tokens = scorer.prefix
        self._pinned = np.array([len(one) for one in questions], dtype=np.int64)

    def extend(self, rows: Ints, ids: Ints) -> None:
        """As in ``Prefixes``, both ways of reading."""
        super().extend(self._both(rows), np.concatenate([ids, ids]))

    def make_room(self, rows: Ints, tokens: Ints) -> None:
        """As in ``Prefixes``, but that the question stays, and both ways of reading go on from the same tokens.

        A question of a quarter and a segment of another leave the half that is kept of the compressed text its room; a
        longer segment (of long units) takes of that, down to what a half would hold beside the question.
        """
        half = self._most_tokens // 2
        over = self.length[rows + len(self._pinned)] + tokens > self._most_tokens
        for row, more in zip(rows[over].tolist(), tokens[over].tolist(), strict=True):
            pinned = int(self._pinned[row])
            room = min(max(self._most_tokens - pinned - more, half - pinned), half)
            keep = min(room, int(self.length[row]), int(self.length[row + len(self._pinned)]) - pinned)
            self._forget(row, 0, keep)
            self._forget(row + len(self._pinned), pinned, keep)

    def catch_up(self, rows: Ints, most: int) -> None:
        """As in ``Prefixes``, both ways of reading."""
        super().catch_up(self._both(rows), most)

    def score(self, rows: Ints, segment: Ints, counts: Ints) -> NDArray[np.float32]:
        """Nats of every segment token without the question less those with it: high where the question leads to it."""
        nats = super().score(self._both(rows), np.concatenate([segment, segment]), np.concatenate([counts, counts]))
        return nats[: len(segment)] - nats[len(segment) :]

    def _both(self, rows: Ints) -> Ints:
        return np.concatenate([rows, rows + len(self._pinned)])

    def _forget(self, row: int, pinned: int, keep: int) -> None:
        """Leave the first ``pinned`` and the last ``keep`` tokens of a row, to be computed anew."""
        last = int(self.length[row])
        self._ids[row, pinned : pinned + keep] = self._ids[row, last - keep : last].copy()
        self.length[row], self.cached[row] = pinned + keep, 0
