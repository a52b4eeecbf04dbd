"""The SQL behind a summary. Every aggregate is the database's: memory does not grow with the documents of a job."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Select, and_, case, func, literal, or_, select
from sqlalchemy.engine import Connection

from pipeline.accounting.figures import (
    BINS,
    BudgetFigures,
    Documents,
    DraftFigures,
    DraftingFigures,
    EvaluationFigures,
    OpenRequest,
    Ratios,
    RejectionFigures,
    RequestFigures,
)
from pipeline.accounting.redact import redact
from schemas.tables import Artifact, Budget, DocumentRow, Draft, Evaluation, Job, Part, Rejection, Request, Usage

PERCENTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)
EXAMPLES = 3
MOST_ROWS = 100
"""Lists that a report shows in full are cut here; their totals are counted apart."""


def documents(connection: Connection, job: Any, reused_stage: int) -> Documents:
    """Counts by what became of each row of the input; ``reused_stage`` is the last whose results can be taken over."""
    query = select(DocumentRow.status, func.count()).where(DocumentRow.job_id == job.id).group_by(DocumentRow.status)
    by_status = {str(status): int(count) for status, count in connection.execute(query)}
    malformed = _scalar(
        connection, select(func.count()).where(Rejection.job_id == job.id, Rejection.stage == -1), default=0
    )
    reused = select(func.count()).where(
        Usage.job_id == job.id, Usage.stage == reused_stage, Usage.reused_from.is_not(None)
    )
    return Documents(
        accepted=sum(by_status.values()),
        done=by_status.get("done", 0),
        reused=_scalar(connection, reused, default=0),
        rejected=by_status.get("rejected", 0) + malformed,
        rejected_input=malformed,
        dead=by_status.get("dead", 0),
        pending=by_status.get("pending", 0),
        collapsed=job.collapsed,
    )


def stage_rows(connection: Connection, job_id: str) -> dict[int, Any]:
    """One row of sums per stage that has usage: see ``summary._stage``."""
    fresh = Usage.reused_from.is_(None)
    copied = Usage.tokens_asked >= Usage.tokens_in
    query = (
        select(
            Usage.stage,
            func.count().label("documents"),
            _sum(~fresh, 1).label("reused"),
            func.sum(Usage.tokens_in).label("tokens_in"),
            # Nobody can be asked for more than there is: a budget beyond the prompt asks for the prompt.
            func.sum(case((copied, Usage.tokens_in), else_=Usage.tokens_asked)).label("tokens_asked"),
            _sum(copied, 1).label("copied"),
            func.sum(Usage.tokens_out).label("tokens_out"),
            _sum(~fresh, Usage.tokens_in).label("reused_in"),
            _sum(~fresh, Usage.tokens_out).label("reused_out"),
            _sum(fresh, Usage.seconds).label("seconds"),
            func.sum(Usage.cost_microusd).label("cost"),
        )
        .where(Usage.job_id == job_id)
        .group_by(Usage.stage)
    )
    return {row.stage: row for row in connection.execute(query)}


def paid(connection: Connection, job_id: str) -> dict[int, Any]:
    """Stage -> what its answered calls cost in all (null: no cost known), and how many have no known cost.

    From the calls themselves, not from usage: an answer that became no row was paid for all the same.
    """
    unpriced = func.count() - func.count(Request.cost_microusd)
    query = select(Request.stage, func.sum(Request.cost_microusd).label("cost"), unpriced.label("unpriced"))
    rows = connection.execute(query.where(Request.job_id == job_id, Request.state == "done").group_by(Request.stage))
    return {row.stage: row for row in rows}


def latencies(connection: Connection, job_id: str) -> dict[int, dict[str, float]]:
    """Per stage, percentile -> latency in seconds by nearest rank (the ``ceil(p n / 100)``-th smallest)."""
    ranked = (
        select(
            Usage.stage,
            Usage.latency_seconds.label("latency"),
            func.row_number().over(partition_by=Usage.stage, order_by=Usage.latency_seconds).label("rank"),
            func.count().over(partition_by=Usage.stage).label("total"),
        )
        .where(Usage.job_id == job_id, Usage.latency_seconds.is_not(None), Usage.reused_from.is_(None))
        .subquery()
    )
    wanted = [ranked.c.rank == (ranked.c.total * p + 99) // 100 for p in PERCENTILES]
    found: dict[int, dict[str, float]] = {}
    for row in connection.execute(select(ranked).where(or_(*wanted)).order_by(ranked.c.stage, ranked.c.rank)):
        for p in PERCENTILES:
            if row.rank == (row.total * p + 99) // 100:
                found.setdefault(row.stage, {})[str(p)] = float(row.latency)
    return found


def ratios(connection: Connection, job_id: str) -> Ratios:
    """Histograms of asked and achieved tokens over original tokens, of stages that were asked for a budget."""
    bounded = (Usage.job_id == job_id, Usage.tokens_asked.is_not(None), Usage.tokens_in > 0)

    def histogram(tokens: Any) -> dict[int, int]:
        # Integers throughout: a float division would move documents across a bin's edge.
        place = case((tokens >= Usage.tokens_in, literal(BINS)), else_=tokens * BINS // Usage.tokens_in).label("place")
        rows = connection.execute(select(place, func.count()).where(*bounded).group_by(place).order_by(place))
        return {int(bin_): count for bin_, count in rows}

    over = select(func.count()).where(*bounded, Usage.tokens_out > Usage.tokens_asked)
    return Ratios(histogram(Usage.tokens_asked), histogram(Usage.tokens_out), _scalar(connection, over, default=0))


def prices_used(connection: Connection, job_id: str) -> dict[str, int]:
    """Price id -> documents billed at it in this job."""
    query = select(Usage.price, func.count()).where(Usage.job_id == job_id, Usage.price.is_not(None))
    return {str(price): count for price, count in connection.execute(query.group_by(Usage.price).order_by(Usage.price))}


def requests(connection: Connection, job_id: str) -> tuple[RequestFigures, ...]:
    """Calls by state."""
    query = (
        select(
            Request.state,
            func.count(),
            func.sum(Request.tokens_in),
            func.sum(Request.tokens_cached),
            func.sum(Request.tokens_out),
            func.sum(Request.cost_microusd),
            func.sum(Request.reserved_microusd),
        )
        .where(Request.job_id == job_id)
        .group_by(Request.state)
        .order_by(Request.state)
    )
    return tuple(
        RequestFigures(state, calls, int(sent or 0), int(cached or 0), int(out or 0), _int(cost), _int(reserved))
        for state, calls, sent, cached, out, cost, reserved in connection.execute(query)
    )


def open_requests(connection: Connection, job_id: str) -> tuple[OpenRequest, ...]:
    """Calls whose end nobody saw, oldest first, at most ``MOST_ROWS``."""
    columns = (Request.id, Request.state, DocumentRow.doc_id, Request.sent_at, Request.reserved_microusd)
    query = (
        select(*columns, Request.error)
        .outerjoin(DocumentRow, and_(DocumentRow.job_id == Request.job_id, DocumentRow.seq == Request.seq))
        .where(Request.job_id == job_id, Request.state.in_(("lost", "sent")))
        .order_by(Request.sent_at, Request.id)
        .limit(MOST_ROWS)
    )
    rows = connection.execute(query).all()
    return tuple(OpenRequest(*row[:5], None if row.error is None else redact(row.error)) for row in rows)


def budget(connection: Connection, job_id: str) -> BudgetFigures | None:
    """The job's budget, if it has one."""
    row = connection.execute(
        select(Budget.limit_microusd, Budget.reserved_microusd, Budget.spent_microusd).where(Budget.job_id == job_id)
    ).first()
    return BudgetFigures(*row) if row else None


def rejections(connection: Connection, job_id: str, kinds: list[str]) -> tuple[RejectionFigures, ...]:
    """By stage, status and code, most frequent first, each with its first examples by source."""
    keys = (Rejection.stage, Rejection.status, Rejection.code)
    counted = connection.execute(
        select(*keys, func.count().label("documents"))
        .where(Rejection.job_id == job_id)
        .group_by(*keys)
        .order_by(func.count().desc(), *keys)
        .limit(MOST_ROWS)
    ).all()
    place = func.row_number().over(partition_by=keys, order_by=Rejection.source).label("place")
    numbered = (
        select(*keys, Rejection.source, Rejection.doc_id, Rejection.reason, place).where(Rejection.job_id == job_id)
    ).subquery()
    examples: dict[tuple[int, str, str], list[dict[str, str | None]]] = {}
    query = select(numbered).where(numbered.c.place <= EXAMPLES).order_by(numbered.c.place)
    for row in connection.execute(query.limit(MOST_ROWS * EXAMPLES)):
        example = {"source": row.source, "doc_id": row.doc_id, "reason": redact(row.reason)}
        examples.setdefault((row.stage, row.status, row.code), []).append(example)
    return tuple(
        RejectionFigures(
            "input" if row.stage < 0 else kinds[row.stage],
            row.status,
            row.code,
            row.documents,
            tuple(examples.get((row.stage, row.status, row.code), ())),
        )
        for row in counted
    )


def evaluations(connection: Connection, job_id: str) -> tuple[EvaluationFigures, ...]:
    """What the job's publication found about its answers, rates in the job file's order."""
    names = [field.name for field in fields(EvaluationFigures)]
    query = select(*(getattr(Evaluation, name) for name in names)).where(Evaluation.job_id == job_id)
    return tuple(EvaluationFigures(*row) for row in connection.execute(query.order_by(Evaluation.place)))


def drafting(connection: Connection, job_id: str) -> tuple[DraftingFigures, ...]:
    """What was drafted for the answers of each stage, and by whom: models in the job file's order. One that some
    workers lacked has no parameters there, and may stand in another place."""
    place, target = func.min(Draft.place), (Draft.place == 0).label("target")
    sums = (func.sum(Draft.passes), func.sum(Draft.drafted), func.sum(Draft.accepted))
    query = select(Draft.stage, Draft.model, func.max(Draft.parameters), *sums).where(Draft.job_id == job_id)
    query = query.group_by(Draft.stage, Draft.model, target).order_by(Draft.stage, place)
    models: dict[int, list[DraftFigures]] = {}
    for stage, model, parameters, *counts in connection.execute(query):
        models.setdefault(stage, []).append(DraftFigures(model, parameters, *map(int, counts)))
    mine = and_(Usage.job_id == Draft.job_id, Usage.stage == Draft.stage, Usage.seq == Draft.seq)
    made = (
        select(Draft.stage, func.count(), func.sum(Usage.tokens_out))
        .join(Usage, mine)
        .where(Draft.job_id == job_id, Draft.place == 0)
        .group_by(Draft.stage)
        .order_by(Draft.stage)
    )
    return tuple(
        DraftingFigures(stage, answers, int(tokens), tuple(models[stage]))
        for stage, answers, tokens in connection.execute(made)
    )


def parts(connection: Connection, job_id: str, stage: int) -> tuple[int, int]:
    """Number and bytes of the parts that stand in the manifest for a stage."""
    query = select(func.count(), func.sum(Part.bytes)).where(Part.job_id == job_id, Part.stage == stage)
    count, size = connection.execute(query).one()
    return count, int(size or 0)


def slot_bytes(connection: Connection, job_id: str) -> int | None:
    """Bytes of all slot files of a job; None where there is none."""
    return _int(connection.scalar(select(func.sum(Part.slots_bytes)).where(Part.job_id == job_id)))


def artifacts(connection: Connection, job_id: str) -> dict[str, str]:
    """Files beside the data, by name."""
    query = select(Artifact.name, Artifact.path).where(Artifact.job_id == job_id).order_by(Artifact.name)
    return {name: redact(path) for name, path in connection.execute(query)}


def job_row(connection: Connection, job_id: str) -> Any | None:
    """The job's own row, or None."""
    return connection.execute(select(Job.__table__).where(Job.id == job_id)).first()


def _sum(condition: Any, value: Any) -> Any:
    return func.coalesce(func.sum(case((condition, value), else_=0)), 0)


def _int(value: Any) -> int | None:
    return None if value is None else int(value)


def _scalar(connection: Connection, query: Select[Any], default: int) -> int:
    return int(connection.execute(query).scalar() or default)
