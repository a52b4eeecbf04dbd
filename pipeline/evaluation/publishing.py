"""A job's evaluation at its publication: rows for SQL, and ``evaluation.parquet`` beside its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.fs as pafs
from sqlalchemy import Engine, func, select

from pipeline.evaluation.results import FILE, as_table, evaluate_spec, read_scores, suffix, summed_up
from pipeline.storage.parts import write_tables
from pipeline.storage.sql import reading
from schemas.job import JobSpec
from schemas.records import EVALUATION
from schemas.tables import DocumentRow, Rejection

INPUT_STAGE = -1


def evaluate_job(
    engine: Engine, job_id: str, spec: JobSpec, fs: pafs.FileSystem, root: str, files: Sequence[str],
    go_on: Callable[[], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Write ``evaluation.parquet`` from ``files``, the parts of the last stage; returns the rows for SQL.

    Nothing for a job without an ``evaluate`` stage. Done twice, it writes the same. Raises ``OSError``, and what
    ``go_on`` raises.
    """
    if evaluate_spec(spec) is None:
        return []
    documents = _documents(engine, job_id, spec)
    rows = [{"job_id": job_id, **row} for row in summed_up(spec, read_scores(fs, files, spec), documents, go_on)]
    write_tables(fs, f"{root}/{FILE}", [as_table(rows)], EVALUATION)
    return rows


def _documents(engine: Engine, job_id: str, spec: JobSpec) -> dict[float | None, int]:
    """Rows of the corpus by rate, with those that were refused on the way: malformed ones stand for all rates."""
    malformed = select(func.count()).where(Rejection.job_id == job_id, Rejection.stage == INPUT_STAGE)
    accepted = select(func.count()).where(DocumentRow.job_id == job_id)
    with reading(engine) as connection:
        lost = int(connection.scalar(malformed) or 0)
        by_rate = {
            rate: accepted if rate is None else accepted.where(DocumentRow.doc_id.endswith(suffix(rate)))
            for rate in spec.rates or (None,)
        }
        return {rate: lost + int(connection.scalar(query) or 0) for rate, query in by_rate.items()}
