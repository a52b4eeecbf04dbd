"""How well scores of tokens agree with what the teacher kept, on passages that were never trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.minilm.labels import RATES, Labelled
from pipeline.compression.classifier import Classifier
from pipeline.models import LoadedModel

Floats = NDArray[np.float64]


def agreement(scores: Floats, data: Labelled) -> dict[str, dict[str, float]]:
    """By rate: AUC over all tokens, and F1 where each passage keeps its best tokens, as many as the teacher kept."""
    found = {}
    for bit, rate in enumerate(RATES):
        kept = (data.labels >> bit & 1).astype(bool)
        chosen = best_of_each(scores, kept, data.lengths)
        # As many are kept as by the teacher, so that precision, recall and F1 are one number.
        f1 = float((chosen & kept).sum() / max(1, kept.sum()))
        found[str(rate)] = {
            "auc": round(auc(scores, kept), 4),
            "f1": round(f1, 4),
            "kept": round(float(kept.mean()), 4),
        }
    return found


def auc(scores: Floats, wanted: NDArray[np.bool_]) -> float:
    """The chance that a wanted token scores above an unwanted one; ties count half."""
    values, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positive = int(wanted.sum())
    negative = len(wanted) - positive
    del values
    return float((ranks[wanted].sum() - positive * (positive + 1) / 2) / max(1, positive * negative))


def best_of_each(scores: Floats, kept: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """In each row the highest scores, as many as ``kept`` has there."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-scores, rows))
    place = np.arange(len(scores)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[order] = place < np.bincount(rows, weights=kept, minlength=len(lengths))[rows]
    return chosen


def student(loaded: LoadedModel, data: Labelled, batch_tokens: int) -> Floats:
    """p(keep) of every token."""
    texts = np.split(data.ids.astype(np.int64), np.cumsum(data.lengths)[:-1])
    return np.concatenate(Classifier(loaded, batch_tokens).keep(texts)).astype(np.float64)


def yardsticks(data: Labelled, trained: Labelled, seed: int) -> Mapping[str, Floats]:
    """Scores that need no model: at random, the first tokens, the tokens rarest in the training passages."""
    counts = np.bincount(trained.ids, minlength=int(max(trained.ids.max(), data.ids.max())) + 1)
    place: NDArray[Any] = np.arange(len(data.ids)) - np.repeat(np.cumsum(data.lengths) - data.lengths, data.lengths)
    return {
        "random": np.random.default_rng(seed).random(len(data.ids)),
        "first": -place.astype(np.float64),
        "rarest": -np.log(counts[data.ids] + 1.0) - 1e-6 * place,
    }
