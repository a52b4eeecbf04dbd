"""The documents that two jobs have in common: equal id, equal reference answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.bootstrap import Floats
from pipeline.evaluation.results import Scores


@dataclass(frozen=True, slots=True)
class Pairing:
    """Places of the common documents in both jobs, in step; ``other_answers`` have one id and two reference answers."""

    ours: NDArray[np.int64]
    theirs: NDArray[np.int64]
    other_answers: int

    @property
    def common(self) -> int:
        """How many documents both have."""
        return len(self.ours)

    def rows(self, ours: Floats, theirs: Floats) -> Floats:
        """Scores of both side by side, (common, 2 columns), as ``bootstrap.difference`` takes them."""
        return np.hstack([ours[self.ours], theirs[self.theirs]])

    @property
    def why_none(self) -> str:
        """Why nothing is common, after the names of two jobs."""
        if self.other_answers:
            return "have documents of the same ids, but with other reference answers: are these the same questions?"
        return "have no document in common: they are paired by id, so give each question the same id in both corpora"


def pair(ours: Scores, theirs: Scores) -> Pairing:
    """The common documents, in our order."""
    places = {doc_id: place for place, doc_id in enumerate(theirs.ids)}
    same_id = [(place, places[doc_id]) for place, doc_id in enumerate(ours.ids) if doc_id in places]
    mine, other = ours.table["answer"].to_pylist(), theirs.table["answer"].to_pylist()
    same = [(one, two) for one, two in same_id if mine[one] == other[two]]
    found = np.array(same, dtype=np.int64).reshape(-1, 2)
    return Pairing(found[:, 0], found[:, 1], len(same_id) - len(same))
