"""A job of several rates, rate by rate: one line each, instead of one sum over copies of the same documents."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import and_, case, func, select
from sqlalchemy.engine import Connection

from pipeline.accounting.figures import RateFigures
from pipeline.accounting.savings import Removed, savings, targets_of
from schemas.job import JobSpec
from schemas.tables import DocumentRow, Usage


def by_rate(
    connection: Connection, job_id: str, spec: JobSpec, day: date, table: Path | None
) -> tuple[RateFigures, ...]:
    """One entry per rate, in the order of the job file; none where the job has one budget."""
    if not spec.rates:
        return ()
    found = {row.place: row for row in connection.execute(_query(job_id, spec))}
    return tuple(_figures(rate, found.get(place), spec, day, table) for place, rate in enumerate(spec.rates))


def _query(job_id: str, spec: JobSpec) -> Any:
    """Sums by the ending that the producer gave the ids of a document's copies (``ID@RATE``)."""
    endings = [
        (DocumentRow.doc_id.endswith(f"@{rate:g}", autoescape=True), place) for place, rate in enumerate(spec.rates)
    ]
    place = case(*endings, else_=-1).label("place")
    stage = next(index for index, stage in enumerate(spec.stages) if stage.kind == "compress")
    its = and_(Usage.job_id == DocumentRow.job_id, Usage.seq == DocumentRow.seq, Usage.stage == stage)
    reused = Usage.reused_from.is_not(None)
    # Nobody can be asked for more than there is: a budget beyond the prompt asks for the prompt.
    asked = case((Usage.tokens_asked >= Usage.tokens_in, Usage.tokens_in), else_=Usage.tokens_asked)
    return (
        select(
            place,
            func.count().label("documents"),
            func.count(Usage.seq).label("compressed"),
            func.coalesce(func.sum(Usage.tokens_in), 0).label("tokens_in"),
            func.coalesce(func.sum(asked), 0).label("tokens_asked"),
            func.coalesce(func.sum(Usage.tokens_out), 0).label("tokens_out"),
            func.coalesce(func.sum(case((reused, 0), else_=Usage.seconds)), 0).label("seconds"),
            func.coalesce(func.sum(case((reused, Usage.tokens_in), else_=0)), 0).label("reused_in"),
            func.coalesce(func.sum(case((reused, Usage.tokens_out), else_=0)), 0).label("reused_out"),
        )
        .select_from(DocumentRow)
        .outerjoin(Usage, its)
        .where(DocumentRow.job_id == job_id)
        .group_by(place)
    )


def _figures(rate: float, row: Any, spec: JobSpec, day: date, table: Path | None) -> RateFigures:
    sums = [int(value) for value in row[1:6]] if row else [0] * 5
    seconds = float(row.seconds) if row else 0.0
    documents, compressed, tokens_in, tokens_asked, tokens_out = sums
    reused = (int(row.reused_in), int(row.reused_out)) if row else (0, 0)
    removed = Removed(tokens_in, tokens_out, seconds, *reused)
    saved = savings(targets_of(spec), removed, spec.target.gpu_usd_per_hour, day, table)
    return RateFigures(rate, documents, compressed, tokens_in, tokens_asked, tokens_out, seconds, saved)
