"""Jobs as a whole: look up, stop, cancel, resume, try the dead again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, Row, and_, case, delete, func, null, select, update
from sqlalchemy.engine import Connection

from pipeline.storage.filesystem import resolve_path
from pipeline.storage.publication import is_published
from pipeline.storage.shards import ACTIVE, PUBLISH, REOPENED, shard_row
from pipeline.storage.sql import insert_ignore, reading
from schemas.tables import DocumentRow, Job, Part, Rejection, Shard


class UnknownJobError(ValueError):
    """No job of this id, or several that begin with it."""


class JobStateError(ValueError):
    """What was asked for has to wait for another state of the job; the text says which."""


def find_job(engine: Engine, job_id: str) -> Row[Any]:
    """The job whose id is, or begins with, ``job_id``."""
    with reading(engine) as connection:
        rows = connection.execute(select(Job).where(Job.id.startswith(job_id, autoescape=True))).all()
    if len(rows) == 1 and job_id:
        return rows[0]
    what = "no job" if not rows else f"{len(rows)} jobs"
    raise UnknownJobError(f"{what} in this database with an id that begins with {job_id!r}: see contextmill status")


def list_jobs(engine: Engine) -> list[Row[Any]]:
    """All jobs, newest first."""
    with reading(engine) as connection:
        return list(connection.execute(select(Job).order_by(Job.created_at.desc())).all())


def stop_job(engine: Engine, job_id: str, code: str, reason: str) -> None:
    """Stop an active job for a reason a person must mend. Its workers hand their shards back within seconds."""
    _set_state(engine, job_id, ACTIVE, {"state": "stopped", "stop_code": code, "error": reason})


def cancel_job(engine: Engine, job_id: str) -> bool:
    """Stop a job for good, or until it is resumed. What is committed stays. False: it was over already."""
    return _set_state(engine, job_id, (*ACTIVE, "stopped"), {"state": "cancelled", "stop_code": None, "error": None})


def resume_job(engine: Engine, job_id: str) -> bool:
    """Let a stopped or cancelled job run on from where it was; its open shards wait for their bell again.

    A job that is done, but whose ``data/`` was removed since, is published again from its parts. False: nothing to do.
    """
    state = case((Job.submitted_at.is_(None), "submitting"), else_="running")
    resumed = {"state": state, "stop_code": None, "error": None}
    over = and_(Job.id == job_id, Job.state.in_(("stopped", "cancelled")))
    pending = and_(Shard.job_id == job_id, Shard.state == "pending")
    with engine.begin() as connection:
        if connection.execute(update(Job).where(over).values(**resumed)).rowcount:
            connection.execute(update(Shard).where(pending).values(rung_at=None, not_before=null()))
            return True
    return _publish_again(engine, job_id)


def _publish_again(engine: Engine, job_id: str) -> bool:
    with reading(engine) as connection:
        job = connection.execute(select(Job).where(Job.id == job_id, Job.state == "done")).one_or_none()
        if job is None:
            return False
        last = and_(Part.job_id == job_id, Part.stage == len(job.spec["stages"]) - 1)
        parts = connection.scalar(select(func.count()).select_from(Part).where(last))
    if is_published(*resolve_path(job.output), parts or 1):
        return False
    with engine.begin() as connection:
        return _reopen(connection, job_id)


def _reopen(connection: Connection, job_id: str) -> bool:
    done = update(Job).where(Job.id == job_id, Job.state == "done")
    if not connection.execute(done.values(state="running", finished_at=None)).rowcount:
        return False
    # Kept, not deleted: a new row would count attempts from 1 again, and attempts are the fence.
    publication = update(Shard).where(Shard.job_id == job_id, Shard.id == PUBLISH)
    connection.execute(publication.values(state=REOPENED))
    return True


def retry_dead(engine: Engine, job_id: str, max_attempts: int) -> int:
    """Give every dead document new attempts, one shard each; returns their number. Rejected ones stay rejected.

    Raises ``JobStateError`` for a job that is not done: a shard of a later stage that is still open would read the
    revived document's row as well as the shard made for it, and a submission cut off would pass for whole.
    """
    dead = and_(Rejection.job_id == job_id, Rejection.status == "dead")
    with engine.begin() as connection:
        # Locked, so that two who ask at once do not both revive the documents.
        state = connection.scalar(select(Job.state).where(Job.id == job_id).with_for_update(key_share=True))
        if state != "done":
            raise JobStateError(f"job {job_id} is {state}: dead documents are tried again once it is done")
        query = select(Rejection.stage, DocumentRow.seq).join(
            DocumentRow, and_(DocumentRow.job_id == Rejection.job_id, DocumentRow.doc_id == Rejection.doc_id)
        )
        rows = connection.execute(query.where(dead)).all()
        for stage, seq in rows:
            _revive(connection, job_id, stage, seq, max_attempts)
        connection.execute(delete(Rejection).where(dead))
        if rows:
            _reopen(connection, job_id)
    return len(rows)


def _revive(connection: Any, job_id: str, stage: int, seq: int, max_attempts: int) -> None:
    row = shard_row(job_id, stage, seq, seq + 1, max_attempts)
    insert_ignore(connection, Shard, [row])
    again = {"state": "pending", "rung_at": None, "not_before": None, "attempt_limit": Shard.attempt + max_attempts}
    connection.execute(update(Shard).where(Shard.job_id == job_id, Shard.id == row["id"]).values(**again))
    where = and_(DocumentRow.job_id == job_id, DocumentRow.seq == seq)
    connection.execute(update(DocumentRow).where(where).values(status="pending"))


def _set_state(engine: Engine, job_id: str, allowed: tuple[str, ...], values: dict[str, Any]) -> bool:
    with engine.begin() as connection:
        statement = update(Job).where(Job.id == job_id, Job.state.in_(allowed)).values(**values)
        return bool(connection.execute(statement).rowcount)
