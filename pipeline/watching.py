"""How far a job is: documents, tokens/s and time left by stage, from SQL alone, so that anyone may watch any job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, and_, case, func, select
from sqlalchemy.engine import Connection

from pipeline.accounting.redact import redact
from pipeline.storage.shards import PUBLISH
from pipeline.storage.sql import db_now, reading
from schemas.tables import Job, Rejection, Request, Shard

ENDED = ("done", "stopped", "cancelled")
WINDOW_SECONDS = 30.0
QUIET_SECONDS = 5.0  # without an answer: while others answer, a call that failed is no news


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One stage. ``total`` grows while the corpus is still being read; ``doing`` is what a training says of itself."""

    kind: str
    documents: int
    total: int
    tokens: int
    documents_per_second: float | None = None
    tokens_per_second: float | None = None
    doing: str | None = None

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None while there is none."""
        if not self.documents_per_second:
            return None
        return (self.total - self.documents) / self.documents_per_second


@dataclass(frozen=True, slots=True)
class FailedCall:
    """The latest call to a hosted endpoint, where it failed and none is answered: it is being tried again."""

    error: str
    url: str | None
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one moment. ``last_call`` is there only while calls to a hosted endpoint fail."""

    job_id: str
    state: str
    error: str | None
    stages: tuple[StageProgress, ...]
    shards_open: int
    shards_working: int
    last_call: FailedCall | None = None


def snapshot(engine: Engine, job_id: str) -> Snapshot:
    """Look at a job once; sums over shards, not documents: cheap for any corpus."""
    with reading(engine) as connection:
        job = connection.execute(select(Job).where(Job.id == job_id)).one()
        shards = {row.stage: row for row in connection.execute(_shards(job_id))}
        refused = {row.stage: row.number for row in connection.execute(_refused(job_id))}
        states = {row.state: row.number for row in connection.execute(_states(job_id))}
        hosted = job.state == "running" and any(spec.get("backend") == "openai" for spec in job.spec["stages"])
        last_call = _last_call(connection, job) if hosted else None
    stages = []
    total = job.documents if job.submitted_at is not None else _known(shards.get(0))
    for index, spec in enumerate(job.spec["stages"]):
        row = shards.get(index)
        documents, tokens, doing = (int(row.documents), int(row.tokens), row.doing) if row else (0, 0, None)
        stages.append(StageProgress(spec["kind"], documents, total, tokens, doing=doing))
        total -= refused.get(index, 0)
    open_shards = states.get("pending", 0) + states.get("leased", 0)
    return Snapshot(job_id, job.state, job.error, tuple(stages), open_shards, states.get("leased", 0), last_call)


def _last_call(connection: Connection, job: Any) -> FailedCall | None:
    """Looks only at the calls of shards in work: few, however many the job has made."""
    of_shard = and_(
        Request.job_id == Shard.job_id,
        Request.stage == Shard.stage,
        Request.seq >= Shard.start,
        Request.seq < Shard.stop,
    )
    in_work = (Shard.job_id == job.id, Shard.state == "leased", Request.finished_at.is_not(None))
    columns = Request.stage, Request.state, Request.error, (db_now() - Request.finished_at).label("ago")
    query = select(*columns).join(Shard, of_shard).where(*in_work).order_by(Request.finished_at.desc())
    last = connection.execute(query.limit(1)).first()
    if last is None or last.state == "done":
        return None
    answered = connection.execute(query.where(Request.state == "done").limit(1)).first()
    if answered is not None and answered.ago < QUIET_SECONDS:
        return None
    url = job.spec["stages"][last.stage].get("base_url")
    return FailedCall(redact(last.error or "no reason known"), url, max(0.0, float(last.ago)))


def _shards(job_id: str) -> Any:
    whole = Shard.stop - Shard.start
    done = case((Shard.state.in_(("done", "dead")), whole), (Shard.state == "leased", Shard.documents_done), else_=0)
    known = case((Shard.state == "split", 0), else_=whole)
    columns = Shard.stage, func.sum(done).label("documents"), func.sum(Shard.tokens_done).label("tokens")
    doing = func.max(case((Shard.state == "leased", Shard.doing)))  # of one that says something, as trainings do
    query = select(*columns, func.sum(known).label("known"), doing.label("doing"))
    return query.where(Shard.job_id == job_id, Shard.id != PUBLISH).group_by(Shard.stage)


def _known(row: Any) -> int:
    return int(row.known) if row else 0


def _refused(job_id: str) -> Any:
    return (
        select(Rejection.stage, func.count().label("number"))
        .where(Rejection.job_id == job_id)
        .group_by(Rejection.stage)
    )


def _states(job_id: str) -> Any:
    return select(Shard.state, func.count().label("number")).where(Shard.job_id == job_id).group_by(Shard.state)


def watch(engine: Engine, job_id: str, pause: float = 0.5) -> Iterator[Snapshot]:
    """Snapshots with rates over the last half minute, until the job has ended; the last one is its end."""
    seen: deque[tuple[float, Snapshot]] = deque()
    while True:
        now, shot = time.monotonic(), snapshot(engine, job_id)
        seen.append((now, shot))
        while len(seen) > 2 and now - seen[0][0] > WINDOW_SECONDS:
            seen.popleft()
        yield _with_rates(*seen[0], now, shot)
        if shot.state in ENDED:
            return
        time.sleep(pause)


def _with_rates(then: float, old: Snapshot, now: float, new: Snapshot) -> Snapshot:
    span = now - then
    if span < 1.0:
        return new
    stages = []
    for before, stage in zip(old.stages, new.stages, strict=True):
        documents, tokens = max(0, stage.documents - before.documents), max(0, stage.tokens - before.tokens)
        stages.append(replace(stage, documents_per_second=documents / span, tokens_per_second=tokens / span))
    return replace(new, stages=tuple(stages))
