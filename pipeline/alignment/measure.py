"""How well a model expects an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Measure(NamedTuple):
    """Of an answer: mean nats of its tokens, and the share of them that are the model's most likely ones, of drafts
    that a greedy target would accept."""

    nats: float
    agreement: float


def mean(measured: Sequence[Measure], tokens: Sequence[int]) -> Measure:
    """Over all tokens of answers that have so many."""
    return Measure(*np.average(np.array(measured), axis=0, weights=tokens).tolist())
