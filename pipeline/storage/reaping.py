"""What nobody else would notice: leases whose holder died, shards nobody rang for, jobs with nothing left to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Update, and_, delete, exists, func, null, or_, select, tuple_, update
from sqlalchemy.engine import Connection, Row
from sqlalchemy.orm import aliased

from pipeline.accounting.wording import counted
from pipeline.storage.shards import ACTIVE, OPEN, PUBLISH, REOPENED, Claim, shard_row
from pipeline.storage.sql import db_now, insert_ignore, reading
from schemas.align import WHOLE_CORPUS
from schemas.tables import DocumentRow, Job, Leader, Rejection, Shard

RING_BATCH = 1_000
WORKER_DIED = "its worker died each time it was tried (out of memory? a crash in a library?)"
RUNG = and_(Shard.state == "pending", Shard.rung_at.is_not(None))

Bell = tuple[str, str]  # kind and priority: each such pair has a queue of its own


@dataclass(frozen=True, slots=True)
class Due:
    """A shard that waits for its bell."""

    job_id: str
    shard_id: str
    kind: str
    priority: str


def lead(engine: Engine, name: str, owner: str, seconds: float) -> bool:
    """Whether ``owner`` may run the task ``name`` for the next ``seconds``: one holder at a time."""
    free = or_(Leader.until < db_now(), Leader.owner == owner)
    with engine.begin() as connection:
        insert_ignore(connection, Leader, [{"name": name, "owner": owner, "until": 0.0}])
        statement = update(Leader).where(Leader.name == name, free).values(owner=owner, until=db_now() + seconds)
        return bool(connection.execute(statement).rowcount)


def leader(engine: Engine, name: str) -> str | None:
    """Who leads the task ``name``, or led it last."""
    with reading(engine) as connection:
        return connection.execute(select(Leader.owner).where(Leader.name == name)).scalar_one_or_none()


def resign(engine: Engine, name: str, owner: str) -> None:
    """Give up the task ``name`` for ``owner``, which stops or is dead: the next one need not wait."""
    with engine.begin() as connection:
        connection.execute(delete(Leader).where(Leader.name == name, Leader.owner == owner))


def expire(engine: Engine, owners: Iterable[str] = ()) -> int:
    """Take back every lease that ran out or whose owner is in ``owners`` (processes known to be dead).

    Not what ran out while a lock kept us waiting: it kept the holder from renewing it, too.
    """
    asked, named = time.monotonic(), list(owners)
    freed = {"state": "pending", "owner": None, "lease_until": None, "rung_at": None}
    with engine.begin() as connection:
        gone: ColumnElement[bool] = Shard.lease_until < db_now() - (time.monotonic() - asked)
        if named:
            gone = or_(gone, Shard.owner.in_(named))
        return connection.execute(update(Shard).where(Shard.state == "leased", gone).values(**freed)).rowcount


def owners(engine: Engine) -> list[str]:
    """Everybody who holds a lease now."""
    with reading(engine) as connection:
        rows = connection.execute(select(Shard.owner).where(Shard.state == "leased").distinct())
        return [owner for (owner,) in rows if owner]


def bury(engine: Engine, max_attempts: int) -> int:
    """Split every spent shard in two, down to the one document that kills its worker, which is recorded as dead.

    A job whose spent shard cannot be split (its publication, a stage over the whole corpus) is stopped instead.
    """
    spent = and_(Shard.state == "pending", Shard.attempt >= Shard.attempt_limit)
    with engine.begin() as connection:
        rows = connection.execute(select(Shard).where(spent).with_for_update()).all()
        for row in rows:
            _bury_one(connection, row, max_attempts)
    return len(rows)


def _bury_one(connection: Connection, shard: Row[Any], max_attempts: int) -> None:
    this = and_(Shard.job_id == shard.job_id, Shard.id == shard.id)
    if whole := _indivisible(connection, shard):
        reason = f"{whole} failed {counted(shard.attempt, 'time')}: {shard.error or WORKER_DIED}"
        stopped = {"state": "stopped", "stop_code": "error", "error": reason}
        connection.execute(update(Job).where(Job.id == shard.job_id).values(**stopped))
        connection.execute(update(Shard).where(this).values(attempt_limit=shard.attempt + max_attempts))
        return
    if shard.stop - shard.start > 1:
        middle = (shard.start + shard.stop) // 2
        halves = [(shard.start, middle), (middle, shard.stop)]
        rows = [shard_row(shard.job_id, shard.stage, a, b, max_attempts) for a, b in halves]
        insert_ignore(connection, Shard, rows)
        connection.execute(update(Shard).where(this).values(state="split"))
        return
    connection.execute(update(Shard).where(this).values(state="dead"))
    _bury_document(connection, shard)


def _indivisible(connection: Connection, shard: Row[Any]) -> str | None:
    """What a shard does that halves of it cannot do; None for the usual one."""
    if shard.id == PUBLISH:
        return "publishing"
    spec = connection.scalar(select(Job.spec).where(Job.id == shard.job_id)) or {}
    kind: str = spec["stages"][shard.stage]["kind"]
    return kind if kind in WHOLE_CORPUS else None


def _bury_document(connection: Connection, shard: Row[Any]) -> None:
    where = and_(DocumentRow.job_id == shard.job_id, DocumentRow.seq == shard.start)
    document = connection.execute(select(DocumentRow).where(where, DocumentRow.status == "pending")).one_or_none()
    if document is None:
        return
    reason = shard.error or WORKER_DIED
    row = {
        "job_id": shard.job_id,
        "stage": shard.stage,
        "source": document.source,
        "doc_id": document.doc_id,
        "status": "dead",
        "code": "worker_lost",
        "reason": f"{reason}; tried {counted(shard.attempt, 'time')}",
    }
    insert_ignore(connection, Rejection, [row])
    connection.execute(update(DocumentRow).where(where).values(status="dead"))


def unrung(engine: Engine, *, of: Claim | None = None) -> list[Due]:
    """Pending shards of active jobs that wait for a bell, the first thousand of them.

    With ``of``, only those over documents of that claim: itself, what follows it, the publication of its job.
    """
    waiting = and_(Shard.state == "pending", Shard.rung_at.is_(None), Shard.attempt < Shard.attempt_limit)
    query = (
        select(Shard.job_id, Shard.id, Shard.stage, Job.spec)
        .join(Job, Job.id == Shard.job_id)
        .where(waiting, Job.state.in_(ACTIVE))
        .where(or_(Shard.not_before.is_(None), Shard.not_before <= db_now()))
        .order_by(Shard.job_id, Shard.stage, Shard.start)
        .limit(RING_BATCH)
    )
    if of is not None:
        query = query.where(Shard.job_id == of.job_id, Shard.start < of.stop, Shard.stop > of.start)
    with reading(engine) as connection:
        return [Due(job, shard, *_bell(stage, spec)) for job, shard, stage, spec in connection.execute(query)]


def _bell(stage: int, spec: dict[str, Any]) -> Bell:
    kinds = [*(entry["kind"] for entry in spec["stages"]), PUBLISH]
    return kinds[stage], spec["priority"]


def unring(engine: Engine, job_id: str) -> None:
    """Forget that the job's pending shards were rung for: the broker that heard it is gone."""
    with engine.begin() as connection:
        pending = update(Shard).where(Shard.job_id == job_id, Shard.state == "pending")
        connection.execute(pending.values(rung_at=None))


def owed(engine: Engine) -> Counter[Bell]:
    """Messages that the broker should have: one for each shard of an active job that was rung for and waits, or is in
    some worker's hands."""
    counts = Counter[Bell]()
    with reading(engine) as connection:
        for _, _, bell, number in _stages(connection, or_(RUNG, Shard.state == "leased")):
            counts[bell] += number
    return counts


def unring_oldest(engine: Engine, bell: Bell, number: int) -> None:
    """Forget that ``number`` of the shards that wait in this queue were rung for: those of the longest ago."""
    with engine.begin() as connection:
        stages = [(job_id, stage) for job_id, stage, its, _ in _stages(connection, RUNG) if its == bell]
        oldest = (
            select(Shard.job_id, Shard.id)
            .where(RUNG, tuple_(Shard.job_id, Shard.stage).in_(stages))
            .order_by(Shard.rung_at)
            .limit(number)
        )
        these = update(Shard).where(tuple_(Shard.job_id, Shard.id).in_(oldest), RUNG)
        connection.execute(these.values(rung_at=None))


def _stages(connection: Connection, which: ColumnElement[bool]) -> list[tuple[str, int, Bell, int]]:
    """(job, stage, bell, number of such shards) of active jobs."""
    query = (
        select(Job.id, Shard.stage, Job.spec, func.count())
        .join(Job, Job.id == Shard.job_id)
        .where(which, Job.state.in_(ACTIVE))
        .group_by(Job.id, Shard.stage)
    )
    return [(job, stage, _bell(stage, spec), number) for job, stage, spec, number in connection.execute(query)]


def mark_rung(engine: Engine, dues: Sequence[Due]) -> None:
    """Note that these shards were rung for. Rung twice is harmless; never rung is not: this comes after the bell."""
    with engine.begin() as connection:
        for due in dues:
            this = and_(Shard.job_id == due.job_id, Shard.id == due.shard_id, Shard.state == "pending")
            connection.execute(update(Shard).where(this).values(rung_at=db_now(), not_before=null()))


def open_publications(engine: Engine, max_attempts: int) -> int:
    """Give every running job that has no open shard left its last one, the publication. Returns their number."""
    some_open = exists(select(Shard.id).where(Shard.job_id == Job.id, Shard.state.in_(OPEN)))
    published = exists(select(Shard.id).where(Shard.job_id == Job.id, Shard.id == PUBLISH, Shard.state == "done"))
    with engine.begin() as connection:
        query = select(Job.id, Job.spec, Job.documents).where(Job.state == "running", ~some_open, ~published)
        rows = connection.execute(query).all()
        for job_id, spec, documents in rows:
            last = shard_row(job_id, len(spec["stages"]), 0, documents, max_attempts) | {"id": PUBLISH}
            insert_ignore(connection, Shard, [last])
            connection.execute(_reopen(job_id, max_attempts))
    return len(rows)


def _reopen(job_id: str, max_attempts: int) -> Update:
    """Looks for open shards itself: the job may have been published, and its dead revived, since we looked."""
    other = aliased(Shard)
    some_open = exists(select(other.id).where(other.job_id == job_id, other.state.in_(OPEN)))
    this = and_(Shard.job_id == job_id, Shard.id == PUBLISH, Shard.state == REOPENED, ~some_open)
    again = {"state": "pending", "rung_at": None, "not_before": None, "attempt_limit": Shard.attempt + max_attempts}
    return update(Shard).where(this).values(**again)
