"""Means of scores with 95% intervals: the percentile bootstrap over documents (Efron, 1979), seeded and vectorised.

Scores come as rows: one column for a mean, ten counts for corpus BLEU (``overlap.Bleu``). A statistic is a function of
the *sums* over a resample, so that both are computed alike; paired differences resample documents, with the scores of
both sides side by side (Koehn, 2004).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Sums over a resample, (resamples, columns + 1), the last column the number of documents -> (resamples,)."""

RESAMPLES = 10_000
FEWEST = 1_000
MOST_DRAWS = 50_000_000  # some two seconds; of more than 5,000 different scores, fewer resamples are drawn
CHUNK = 4_000_000  # draws held at once
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of a sample and its 95% interval, on the scale of the scores."""

    value: float
    low: float
    high: float


def mean(sums: Floats) -> Floats:
    """Of one column."""
    return sums[:, 0] / sums[:, -1]


def difference(statistic: Statistic) -> Statistic:
    """The statistic of the first half of the columns minus that of the second: two jobs side by side."""

    def of(sums: Floats) -> Floats:
        width = (sums.shape[1] - 1) // 2
        count = sums[:, -1:]
        ours, theirs = sums[:, :width], sums[:, width : 2 * width]
        return statistic(np.hstack([ours, count])) - statistic(np.hstack([theirs, count]))

    return of


def corpus_bleu(sums: Floats) -> Floats:
    """BLEU-4 of a corpus from the sums of its counts, with sacrebleu's exponential smoothing; from 0 to 1."""
    length, reference, correct, total = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    halvings = np.cumsum((correct == 0) & (total > 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(correct > 0, correct, 0.5**halvings) / total
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        score = brevity * np.exp(np.log(precision).mean(axis=1))
    none = (correct.sum(axis=1) == 0) | (total == 0).any(axis=1)
    return np.where(none, 0.0, score)


def interval(rows: Floats, statistic: Statistic = mean) -> Interval:
    """The statistic of all rows, (documents, columns), and its interval. Raises ``ValueError`` for no rows."""
    if not len(rows):
        raise ValueError("no documents to resample")
    counted = np.hstack([rows, np.ones((len(rows), 1))])
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(statistic(_resampled_sums(counted)), [tail, 100 - tail])
    value = statistic(counted.sum(axis=0, keepdims=True))[0]
    return Interval(float(value), float(low), float(high))


def resamples(documents: int) -> int:
    """How many resamples are drawn of so many documents."""
    return int(min(RESAMPLES, max(FEWEST, MOST_DRAWS // documents)))


def _resampled_sums(rows: Floats) -> Floats:
    """Column sums of each resample, (resamples, columns). A resample is told by how often it holds each *different*
    row: right and wrong answers are two, however many documents there are."""
    different, counts = np.unique(rows, axis=0, return_counts=True)
    generator, number, left = np.random.default_rng(SEED), len(rows), resamples(len(different))
    sums = []
    while left:
        size = min(left, max(1, CHUNK // len(different)))
        drawn = generator.multinomial(number, counts / number, size=size)
        sums.append(drawn.astype(np.float64) @ different)
        left -= size
    return np.concatenate(sums)
