"""The scores of a job's documents, summed up: one row per metric, and per rate where the job has several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from pipeline.evaluation.bootstrap import Floats, Interval, Statistic, corpus_bleu, interval, mean
from pipeline.storage.parts import table_from_rows
from schemas.evaluate import EvaluateSpec
from schemas.job import JobSpec
from schemas.records import EVALUATION

CORPUS_BLEU = "corpus_bleu4"
"""Not the mean of the documents' BLEU but that of the corpus, as the field reports it."""

FILE = "evaluation.parquet"
COLUMNS = "doc_id", "answer", "tokens_original", "tokens_compressed", "tokens_prompt", "tokens_generated", "cost_usd",\
    "compress_seconds", "encode_seconds", "generate_seconds"  # fmt: skip


def evaluate_spec(spec: JobSpec) -> EvaluateSpec | None:
    """The job's evaluate stage, if it has one."""
    return next((stage for stage in spec.stages if isinstance(stage, EvaluateSpec)), None)


def metrics_of(spec: EvaluateSpec) -> tuple[str, ...]:
    """What is summed up: the metrics of documents, and corpus BLEU beside their BLEU."""
    return (*spec.measured, *((CORPUS_BLEU,) if "bleu4" in spec.measured else ()))


@dataclass(frozen=True, slots=True)
class Scores:
    """Documents with scores, at one of the job's rates. ``ids`` are the corpus' own, without the rate."""

    rate: float | None
    ids: Sequence[str]
    table: pa.Table

    def rows(self, metric: str) -> Floats:
        """What a bootstrap of the metric resamples, (documents, columns)."""
        if metric == CORPUS_BLEU:
            return np.array(self.table["bleu_counts"].to_pylist(), dtype=np.float64).reshape(-1, 10)
        return self.column(metric)[:, None]

    def column(self, name: str) -> Floats:
        """A column of numbers; nan where it is null."""
        return np.asarray(pc.cast(self.table[name], pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)

    def total(self, name: str) -> int | None:
        """The sum of a column of whole numbers; None where the job has no such column, or a document no value in it."""
        if name not in self.table.column_names or self.table[name].null_count or not len(self.ids):
            return None
        return int(pc.sum(self.table[name]).as_py())


def statistic(metric: str) -> Statistic:
    """How a metric of documents becomes one of all of them."""
    return corpus_bleu if metric == CORPUS_BLEU else mean


def read_scores(fs: pafs.FileSystem, files: Sequence[str] | str, spec: JobSpec) -> list[Scores]:
    """The scores in Parquet files (or a folder of them), one entry per rate of the job.

    Raises ``OSError`` for a file that is gone, ``pa.ArrowInvalid`` for one that is damaged.
    """
    import pyarrow.dataset as pads  # which imports pandas, where there is one: not at every start of a command

    evaluated = evaluate_spec(spec)
    assert evaluated is not None
    dataset = pads.dataset(list(files) if not isinstance(files, str) else files, filesystem=fs, format="parquet")
    wanted = [*COLUMNS, *evaluated.measured, *(["bleu_counts"] if "bleu4" in evaluated.measured else [])]
    table = dataset.to_table(columns=[name for name in wanted if name in dataset.schema.names])
    return [_at_rate(table, rate) for rate in spec.rates or (None,)]


def _at_rate(table: pa.Table, rate: float | None) -> Scores:
    if rate is None:
        return Scores(None, table["doc_id"].to_pylist(), table)
    ending = suffix(rate)
    of_rate = table.filter(pc.ends_with(table["doc_id"], ending))
    return Scores(rate, [one.removesuffix(ending) for one in of_rate["doc_id"].to_pylist()], of_rate)


def suffix(rate: float) -> str:
    """What the producer adds to the id of a document's copy at a rate."""
    return f"@{rate:g}"


def summed_up(
    spec: JobSpec, scores: Iterable[Scores], documents: Mapping[float | None, int], go_on: Callable[[], None]
) -> list[dict[str, Any]]:
    """Rows of ``schemas.tables.Evaluation``, without their job. ``documents`` has, by rate, how many there were in all.

    Calls ``go_on`` before each metric, and raises what that raises.
    """
    evaluated = evaluate_spec(spec)
    assert evaluated is not None
    return [
        {"place": place, "task": evaluated.task, **row}
        for place, row in enumerate(_rows(evaluated, scores, documents, go_on))
    ]


def _rows(
    spec: EvaluateSpec, scores: Iterable[Scores], documents: Mapping[float | None, int], go_on: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    for one in scores:
        for metric in metrics_of(spec):
            go_on()
            found = interval(one.rows(metric), statistic(metric)) if len(one.ids) else None
            yield {
                "metric": metric,
                "rate": one.rate,
                "documents": documents[one.rate],
                "scored": len(one.ids),
                **_interval(found),
                "tokens_original": one.total("tokens_original"),
                "tokens_compressed": one.total("tokens_compressed"),
                "tokens_prompt": one.total("tokens_prompt"),
            }


def _interval(found: Interval | None) -> dict[str, float | None]:
    """Nothing is known of no documents; their mean is not 0."""
    return {name: getattr(found, name, None) for name in ("value", "low", "high")}


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """``evaluation.parquet``."""
    return table_from_rows([{name: row[name] for name in EVALUATION.names} for row in rows], EVALUATION)
