"""The life of a shard in SQL: claim, renew, release, finish. Here lies the exactly-once effect.

A claim is one conditional UPDATE that raises ``attempt``; that number fences everything its holder does later. A
message delivered twice, or late, finds nothing to claim. Time is the database's clock throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, delete, exists, insert, null, or_, select, update
from sqlalchemy.engine import Connection

from pipeline import collecting
from pipeline.storage.sql import db_now, insert_ignore
from schemas.tables import ContextRow, DocumentRow, Draft, Evaluation, Job, Part, Rejection, Shard, Usage

ACTIVE = ("submitting", "running")
OPEN = ("pending", "leased")
PUBLISH = "publish"  # the id of the last shard of a job: it turns committed parts into `data/`
REOPENED = "reopened"  # the state of a publication that has to be done again, once nothing else is open


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on documents ``[start, stop)`` at a stage, until the lease runs out."""

    job_id: str
    shard_id: str
    stage: int
    start: int
    stop: int
    attempt: int
    attempt_limit: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What one attempt at a shard adds to the database, all of it or nothing."""

    seconds: float = 0.0
    documents: int = 0
    tokens: int = 0
    part: dict[str, Any] | None = None
    usage: Sequence[dict[str, Any]] = ()
    drafts: Sequence[dict[str, Any]] = ()
    contexts: Sequence[dict[str, Any]] = ()
    rejections: Sequence[dict[str, Any]] = ()  # rows of Rejection, each with its document's ``seq`` besides
    next_shards: Sequence[dict[str, Any]] = ()
    last_stage: bool = False
    job: dict[str, Any] = field(default_factory=dict)  # columns of the job to set, for its publication
    evaluations: Sequence[dict[str, Any]] = ()  # what its publication found; takes the place of what was there


def shard_row(job_id: str, stage: int, start: int, stop: int, attempt_limit: int) -> dict[str, Any]:
    """A pending shard. Its id follows from what it covers, so that cutting a corpus again makes the same rows."""
    return {
        "job_id": job_id,
        "id": f"{stage}-{start}-{stop}",
        "stage": stage,
        "start": start,
        "stop": stop,
        "state": "pending",
        "attempt": 0,
        "attempt_limit": attempt_limit,
    }


def _job_active(job_id: str) -> ColumnElement[bool]:
    return exists(select(Job.id).where(Job.id == job_id, Job.state.in_(ACTIVE)))


def _held(claim: Claim) -> ColumnElement[bool]:
    return and_(
        Shard.job_id == claim.job_id,
        Shard.id == claim.shard_id,
        Shard.state == "leased",
        Shard.attempt == claim.attempt,
    )


def claim(engine: Engine, job_id: str, shard_id: str, owner: str, lease_seconds: float) -> Claim | None:
    """Take the shard, or None: it is done, held by a live lease, spent, too early, or its job is not active."""
    free = or_(Shard.state == "pending", and_(Shard.state == "leased", Shard.lease_until < db_now()))
    statement = (
        update(Shard)
        .where(Shard.job_id == job_id, Shard.id == shard_id, free, Shard.attempt < Shard.attempt_limit)
        .where(or_(Shard.not_before.is_(None), Shard.not_before <= db_now()), _job_active(job_id))
        .values(
            state="leased",
            attempt=Shard.attempt + 1,
            owner=owner,
            lease_until=db_now() + lease_seconds,
            documents_done=0,
            tokens_done=0,
            doing=None,
        )
        .returning(Shard.stage, Shard.start, Shard.stop, Shard.attempt, Shard.attempt_limit)
    )
    with engine.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return Claim(job_id, shard_id, *row) if row else None


def renew(
    engine: Engine, claim: Claim, lease_seconds: float, documents: int, tokens: int, doing: str | None = None
) -> bool:
    """Extend the lease and note progress. False: the shard is no longer ours, or its job was cancelled or stopped."""
    statement = (
        update(Shard)
        .where(_held(claim), _job_active(claim.job_id))
        .values(lease_until=db_now() + lease_seconds, documents_done=documents, tokens_done=tokens, doing=doing)
    )
    with engine.begin() as connection:
        return bool(connection.execute(statement).rowcount)


def release(engine: Engine, claim: Claim, *, error: str | None, delay: float = 0.0, charge: bool = True) -> bool:
    """Give the shard back to be rung again after ``delay`` seconds.

    ``charge=False`` returns the attempt: the shard was handed back by no fault of its documents. The counter itself
    only ever grows, since it is the fence; its limit grows with it.
    """
    statement = (
        update(Shard)
        .where(_held(claim))
        .values(
            state="pending",
            owner=None,
            lease_until=None,
            rung_at=None,
            error=error,
            not_before=db_now() + delay if delay else null(),
            attempt_limit=Shard.attempt_limit + (0 if charge else 1),
        )
    )
    with engine.begin() as connection:
        return bool(connection.execute(statement).rowcount)


@collecting.seldom()
def finish(engine: Engine, claim: Claim, commit: Commit) -> bool:
    """Commit an attempt in one transaction. False, and nothing written: the fence was lost; or a publication's job was
    cancelled or stopped meanwhile, which stays so.

    Safe to repeat: a connection may break after the server committed, before it could say so.
    """
    done = {
        "state": "done",
        "lease_until": None,
        "owner": None,
        "error": None,
        "seconds": commit.seconds,
        "documents_done": commit.documents,
        "tokens_done": commit.tokens,
    }
    with engine.begin() as connection:
        over = bool(commit.job) and not _still_runs(connection, claim.job_id)
        if over or not connection.execute(update(Shard).where(_held(claim)).values(**done)).rowcount:
            return _committed(connection, claim, commit)
        if commit.part:
            connection.execute(insert(Part), [commit.part])
        if commit.usage:
            connection.execute(insert(Usage), list(commit.usage))
        if commit.drafts:
            connection.execute(insert(Draft), list(commit.drafts))
        if commit.contexts:
            connection.execute(insert(ContextRow), list(commit.contexts))
        _settle_documents(connection, claim, commit)
        insert_ignore(connection, Shard, list(commit.next_shards))
        if commit.job:
            connection.execute(update(Job).where(Job.id == claim.job_id).values(**commit.job))
            connection.execute(delete(Evaluation).where(Evaluation.job_id == claim.job_id))
        if commit.evaluations:
            connection.execute(insert(Evaluation), list(commit.evaluations))
    return True


def _still_runs(connection: Connection, job_id: str) -> bool:
    """Locks the row, so that nobody cancels the job between this look and the commit."""
    state = connection.scalar(select(Job.state).where(Job.id == job_id).with_for_update(key_share=True))
    return bool(state == "running")


def _committed(connection: Connection, claim: Claim, commit: Commit) -> bool:
    """Whether this very commit went through at an earlier try. A part's name is no other attempt's."""
    mine = and_(Shard.job_id == claim.job_id, Shard.id == claim.shard_id, Shard.attempt == claim.attempt)
    query = select(Shard.id).where(mine, Shard.state == "done")
    if commit.part:
        query = query.where(exists().where(Part.job_id == claim.job_id, Part.path == commit.part["path"]))
    return connection.scalar(query) is not None


def _settle_documents(connection: Connection, claim: Claim, commit: Commit) -> None:
    for row in commit.rejections:
        refused = {key: value for key, value in row.items() if key != "seq"}
        connection.execute(insert(Rejection), [refused])
        connection.execute(
            update(DocumentRow)
            .where(DocumentRow.job_id == claim.job_id, DocumentRow.seq == row["seq"])
            .values(status=row["status"])
        )
    if commit.last_stage:
        connection.execute(
            update(DocumentRow)
            .where(DocumentRow.job_id == claim.job_id, DocumentRow.seq >= claim.start, DocumentRow.seq < claim.stop)
            .where(DocumentRow.status == "pending")
            .values(status="done")
        )
