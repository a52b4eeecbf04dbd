"""Whole prompts through the compress stage at equal budgets: how far do other methods choose what the teacher does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.minilm.labels import RATES, Spans, compressed, covered
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool

Found = dict[str, dict[str, float]]


def compare(
    texts: Sequence[str], methods: Mapping[str, dict[str, Any]], teacher: str, target: Tokenising, pool: ModelPool
) -> Found:
    """By method (settings of its stage) and rate: F1 of its kept tokens against the teacher's."""
    found: Found = {name: {} for name in methods}
    for rate in RATES:
        chosen = {name: _choices(texts, {**method, "rate": rate}, pool) for name, method in methods.items()}
        for name, ours in chosen.items():
            found[name][str(rate)] = overlap(texts, ours, chosen[teacher], target)
    return found


def overlap(texts: Sequence[str], ours: Sequence[Spans], theirs: Sequence[Spans], target: Tokenising) -> float:
    """F1 of our kept tokens against theirs, over all texts."""
    both = total = 0
    for text, tokens, one, other in zip(texts, target.tokenise(texts), ours, theirs, strict=True):
        kept, wanted = covered(one, tokens.spans, len(text)), covered(other, tokens.spans, len(text))
        both += 2 * int((kept & wanted).sum())
        total += int(kept.sum()) + int(wanted.sum())
    return both / max(1, total)


def _choices(texts: Sequence[str], settings: dict[str, Any], pool: ModelPool) -> list[Spans]:
    nothing = np.zeros((0, 2), np.int64)
    return [nothing if spans is None else spans for spans in compressed(texts, settings, pool)]
