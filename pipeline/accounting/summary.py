"""One job, summed up from SQL alone: what was done, what it cost, what it saves, and where it is."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.engine import Connection

from pipeline.accounting import queries
from pipeline.accounting.by_rate import by_rate
from pipeline.accounting.compare import compare
from pipeline.accounting.figures import Places, StageFigures, Summary
from pipeline.accounting.redact import redact, redact_all
from pipeline.accounting.savings import Removed, savings, targets_of
from pipeline.storage.sql import db_now, reading
from schemas.base import StageBase
from schemas.compress import CompressBase
from schemas.job import JobSpec
from schemas.memory import EncodeSpec
from schemas.records import ANSWER_DECIDES, SHORTENING
from schemas.stage import GenerateSpec

__all__ = ["NoSuchJob", "Summary", "summarise"]


class NoSuchJob(ValueError):  # noqa: N818
    """The database has no job of that id."""


def summarise(engine: Engine, job_id: str, *, price_table: Path | None = None) -> Summary:
    """Sum up a job, finished or not. Raises ``NoSuchJob``; prices are those of the day the job was created."""
    with reading(engine) as connection:
        if engine.dialect.name == "postgresql":  # one snapshot for all queries: a running job's figures must add up
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        job = queries.job_row(connection, job_id)
        if job is None:
            raise NoSuchJob(f"no job {job_id!r} in {_database(engine)}; `contextmill status` lists the jobs")
        return _summary(connection, job, _database(engine), price_table)


def _summary(connection: Connection, job: Any, database: str, price_table: Path | None) -> Summary:
    spec = JobSpec.model_validate(job.spec)
    last = len(spec.stages) - 1
    documents = queries.documents(connection, job, _last_taken_over(spec))
    stages = _stages(connection, job.id, spec)
    created = datetime.fromtimestamp(job.created_at, UTC).date()
    requests = queries.requests(connection, job.id)
    return Summary(
        job_id=job.id,
        name=job.name,
        state=job.state,
        stop_code=job.stop_code,
        error=None if job.error is None else redact(job.error),
        created_at=job.created_at,
        finished_at=job.finished_at,
        wall_seconds=_wall(connection, job),
        workers=job.workers,
        documents=documents,
        stages=stages,
        ratios=queries.ratios(connection, job.id),
        savings=_savings(spec, stages, created, price_table),
        rates=by_rate(connection, job.id, spec, created, price_table),
        gpu_usd_per_hour=spec.target.gpu_usd_per_hour,
        requests=requests,
        open_requests=queries.open_requests(connection, job.id) if requests else (),
        budget=queries.budget(connection, job.id),
        rejections=queries.rejections(connection, job.id, [stage.kind for stage in spec.stages]),
        prices_used=queries.prices_used(connection, job.id),
        evaluations=queries.evaluations(connection, job.id),
        drafting=queries.drafting(connection, job.id),
        estimate=job.estimate,
        comparisons=compare(job.estimate, documents.accepted, stages),
        places=_places(connection, job, database, last),
        spec=redact_all(job.spec),
        spec_hash=job.spec_hash,
        input_hash=job.input_hash,
        stage_hashes=tuple(job.stage_hashes),
    )


def _last_taken_over(spec: JobSpec) -> int:
    """The last stage whose results an earlier job may have: scores are worked out by every job itself.

    Where every stage is such a one it is the last: nothing is taken over there.
    """
    shared = [index for index, stage in enumerate(spec.stages) if stage.kind not in ANSWER_DECIDES]
    return shared[-1] if shared else len(spec.stages) - 1


def _wall(connection: Connection, job: Any) -> float | None:
    if job.finished_at is None and job.state not in ("submitting", "running"):
        return None
    ended = connection.execute(select(db_now())).scalar_one() if job.finished_at is None else job.finished_at
    return max(0.0, float(ended) - float(job.created_at))


def _stages(connection: Connection, job_id: str, spec: JobSpec) -> tuple[StageFigures, ...]:
    rows, latency = queries.stage_rows(connection, job_id), queries.latencies(connection, job_id)
    paid = queries.paid(connection, job_id)
    return tuple(
        _stage(index, stage, spec, rows.get(index), latency.get(index, {}), paid.get(index))
        for index, stage in enumerate(spec.stages)
    )


def _stage(index: int, stage: StageBase, spec: JobSpec, row: Any, latency: dict[str, float], paid: Any) -> StageFigures:
    cost, rowless = _cost(stage, row, paid)
    seconds = float(row.seconds) if row else 0.0
    tokens_in, tokens_out = (int(row.tokens_in), int(row.tokens_out)) if row else (0, 0)
    reused_in, reused_out = (int(row.reused_in), int(row.reused_out)) if row else (0, 0)
    return StageFigures(
        index=index,
        kind=spec.stages[index].kind,
        method=_method(stage, spec),
        documents=row.documents if row else 0,
        reused=int(row.reused) if row else 0,
        tokens_in=tokens_in,
        tokens_asked=int(row.tokens_asked) if row and row.tokens_asked is not None else None,
        tokens_out=tokens_out,
        copied=int(row.copied) if row else 0,
        reused_tokens_in=reused_in,
        reused_tokens_out=reused_out,
        seconds=seconds,
        tokens_in_per_second=(tokens_in - reused_in) / seconds if seconds > 0 else None,
        tokens_out_per_second=(tokens_out - reused_out) / seconds if seconds > 0 else None,
        latency=latency,
        cost_microusd=cost,
        rowless_microusd=rowless,
        unpriced=int(paid.unpriced) if paid else 0,
    )


def _cost(stage: StageBase, row: Any, paid: Any) -> tuple[int | None, int]:
    """What a stage's calls cost, and the part of that which usage rows do not have."""
    if not isinstance(stage, GenerateSpec) or stage.backend != "openai":
        return None, 0
    in_rows = None if row is None or row.cost is None else int(row.cost)
    if paid is None or paid.cost is None:  # no call was made or priced: what was taken over cost a known 0
        return in_rows, 0
    return int(paid.cost), int(paid.cost) - (in_rows or 0)


def _method(stage: StageBase, spec: JobSpec) -> str:
    if isinstance(stage, CompressBase):
        whose = ["as the library has it"] if stage.fidelity == "reference" else []
        return " ".join([stage.method, *whose, *(f"({model})" for model in stage.scoring_models)])
    if isinstance(stage, EncodeSpec):
        return f"{stage.encoder} ({stage.precision})"
    if isinstance(stage, GenerateSpec):
        return f"{spec.target.model} ({'hosted' if stage.backend == 'openai' else 'local'})"
    return ""


def _savings(spec: JobSpec, stages: tuple[StageFigures, ...], day: date, table: Path | None) -> Any:
    compress = next((stage for stage in stages if stage.kind in SHORTENING), None)
    if compress is None:
        return ()
    removed = Removed(
        compress.tokens_in,
        compress.tokens_out,
        compress.seconds,
        compress.reused_tokens_in,
        compress.reused_tokens_out,
    )
    return savings(targets_of(spec), removed, spec.target.gpu_usd_per_hour, day, table)


def _places(connection: Connection, job: Any, database: str, last_stage: int) -> Places:
    count, size = queries.parts(connection, job.id, last_stage)
    output = redact(job.output)
    sizes = count, size, queries.slot_bytes(connection, job.id)
    return Places(output, f"{output.rstrip('/')}/data", database, *sizes, queries.artifacts(connection, job.id))


def _database(engine: Engine) -> str:
    return redact(engine.url.render_as_string(hide_password=True))
