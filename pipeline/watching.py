"""How far a job is: documents, tokens/s and time left by stage, from SQL alone, so that anyone may watch any job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, case, func, select

from pipeline.storage.shards import PUBLISH
from pipeline.storage.sql import reading
from schemas.tables import Job, Rejection, Shard

ENDED = ("done", "stopped", "cancelled")
WINDOW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One stage. ``total`` grows while the corpus is still being read."""

    kind: str
    documents: int
    total: int
    tokens: int
    documents_per_second: float | None = None
    tokens_per_second: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None while there is none."""
        if not self.documents_per_second:
            return None
        return (self.total - self.documents) / self.documents_per_second


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one moment."""

    job_id: str
    state: str
    error: str | None
    stages: tuple[StageProgress, ...]
    shards_open: int
    shards_working: int


def snapshot(engine: Engine, job_id: str) -> Snapshot:
    """Look at a job once; sums over shards, not documents: cheap for any corpus."""
    with reading(engine) as connection:
        job = connection.execute(select(Job).where(Job.id == job_id)).one()
        shards = {row.stage: row for row in connection.execute(_shards(job_id))}
        refused = {row.stage: row.number for row in connection.execute(_refused(job_id))}
        states = {row.state: row.number for row in connection.execute(_states(job_id))}
    stages = []
    total = job.documents if job.submitted_at is not None else _known(shards.get(0))
    for index, spec in enumerate(job.spec["stages"]):
        row = shards.get(index)
        documents, tokens = (int(row.documents), int(row.tokens)) if row else (0, 0)
        stages.append(StageProgress(spec["kind"], documents, total, tokens))
        total -= refused.get(index, 0)
    open_shards = states.get("pending", 0) + states.get("leased", 0)
    return Snapshot(job_id, job.state, job.error, tuple(stages), open_shards, states.get("leased", 0))


def _shards(job_id: str) -> Any:
    whole = Shard.stop - Shard.start
    done = case((Shard.state.in_(("done", "dead")), whole), (Shard.state == "leased", Shard.documents_done), else_=0)
    known = case((Shard.state == "split", 0), else_=whole)
    columns = Shard.stage, func.sum(done).label("documents"), func.sum(Shard.tokens_done).label("tokens")
    query = select(*columns, func.sum(known).label("known"))
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
        rates = documents / span, tokens / span
        stages.append(StageProgress(stage.kind, stage.documents, stage.total, stage.tokens, *rates))
    return Snapshot(new.job_id, new.state, new.error, tuple(stages), new.shards_open, new.shards_working)
