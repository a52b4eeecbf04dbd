"""The budgets at which another method keeps as many tokens as one that misses its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.quality.corpora import read
from benchmarks.quality.matrix import Planned
from pipeline.evaluation.results import read_scores
from pipeline.models import load_tokenizer
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.jobs import find_job
from schemas.document import SEPARATOR


def achieved_rates(engine: Engine, job: str, planned: Planned, taken: Sequence[float] = ()) -> tuple[float, ...]:
    """Per rate of the job, the share of the contexts' tokens that it kept: compressed and original, both without what
    stands verbatim beside the contexts; the rate asked for, where nothing was scored. As many as the job has, none of
    them ``taken``."""
    tokenizer = load_tokenizer(planned.spec.target.tokenizer_model)
    (corpus,) = planned.spec.input.path
    rows = read(Path(corpus))
    beside = {row["id"]: len(tokenizer.encode(_beside(row), add_special_tokens=False)) for row in rows}
    fs, root = resolve_path(find_job(engine, job).output)
    rates: list[float] = []
    for scores, asked in zip(read_scores(fs, f"{root}/data", planned.spec), planned.rates, strict=True):
        verbatim = sum(beside[doc_id] for doc_id in scores.ids)
        original, compressed = scores.total("tokens_original"), scores.total("tokens_compressed")
        rate = asked if not original or not compressed else (compressed - verbatim) / max(1, original - verbatim)
        rates.append(_another(round(min(1.0, max(1e-4, rate)), 6), [*taken, *rates]))
    return tuple(rates)


def _another(rate: float, taken: Sequence[float]) -> float:
    """The rate, or the next smaller one that is free: a job has each rate once."""
    while rate in taken:
        rate = round(rate - 1e-6, 6)
    return rate


def _beside(row: Mapping[str, str]) -> str:
    return SEPARATOR.join(part for part in (row["instruction"], row["question"]) if part)
