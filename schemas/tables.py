"""The database: SQL is the truth about what is done, what it cost and what is still owed.

Times are seconds since the epoch by the *database's* clock (``pipeline.storage.sql.db_now``): workers on several
machines agree on one clock, and a lease is plain arithmetic in SQLite and PostgreSQL alike.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite only autoincrements INTEGER; PostgreSQL's INTEGER ends at 2^31.
Big = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Declarative base; ``Base.metadata`` is what Alembic compares against."""

    type_annotation_map = {str: String, float: Float(53), dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


def _job() -> Mapped[str]:
    return mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


class Job(Base):
    """One submission: frozen spec, the corpus it was cut from, and how far it came.

    ``state``: submitting -> running -> done, or cancelled, or stopped (``stop_code`` budget or error; ``error`` says
    what a person must mend). Every state but done can be resumed.
    """

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    stop_code: Mapped[str | None]
    error: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str]
    input_hash: Mapped[str]
    stage_hashes: Mapped[list[str]]
    output: Mapped[str]
    workers: Mapped[int]
    documents: Mapped[int] = mapped_column(Big, default=0)
    collapsed: Mapped[int] = mapped_column(Big, default=0)
    estimate: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[float]
    submitted_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class Shard(Base):
    """A run of documents ``[start, stop)`` at one stage: the unit of a message, a claim and a commit.

    ``state``: pending -> leased -> done | split | dead; a publication to be done again is reopened. ``attempt`` counts
    claims and fences commits; once it reaches ``attempt_limit`` the shard is split in two, or dead if it holds one
    document.
    ``documents_done`` and ``tokens_done`` are the progress of the running attempt, ``doing`` what it says of that.
    """

    __tablename__ = "shards"
    __table_args__ = (Index("ix_shards_open", "state", "lease_until"),)
    job_id: Mapped[str] = _job()
    id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[int]
    start: Mapped[int] = mapped_column(Big)
    stop: Mapped[int] = mapped_column(Big)
    state: Mapped[str] = mapped_column(default="pending")
    attempt: Mapped[int] = mapped_column(default=0)
    attempt_limit: Mapped[int]
    owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    rung_at: Mapped[float | None]
    not_before: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None]
    documents_done: Mapped[int] = mapped_column(default=0)
    tokens_done: Mapped[int] = mapped_column(Big, default=0)
    doing: Mapped[str | None] = mapped_column(Text)


class DocumentRow(Base):
    """One accepted document. ``status``: pending -> done | rejected | dead."""

    __tablename__ = "documents"
    __table_args__ = (Index("ux_documents_doc_id", "job_id", "doc_id", unique=True),)
    job_id: Mapped[str] = _job()
    seq: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    doc_id: Mapped[str]
    content_hash: Mapped[str]
    source: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending")


class Rejection(Base):
    """Input that gave no result: a malformed row (stage -1), a refusal of a stage, or a dead document."""

    __tablename__ = "rejections"
    job_id: Mapped[str] = _job()
    stage: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    source: Mapped[str] = mapped_column(primary_key=True)
    doc_id: Mapped[str | None]
    status: Mapped[str]
    code: Mapped[str]
    reason: Mapped[str] = mapped_column(Text)


class Part(Base):
    """The manifest: a Parquet file exists for readers once, and only if, its row stands here.

    ``slots_bytes`` is the size of the slot file beside it; null where there is none.
    """

    __tablename__ = "parts"
    job_id: Mapped[str] = _job()
    path: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[int]
    start: Mapped[int] = mapped_column(Big)
    stop: Mapped[int] = mapped_column(Big)
    rows: Mapped[int]
    bytes: Mapped[int] = mapped_column(Big)
    slots_bytes: Mapped[int | None] = mapped_column(Big)


class Usage(Base):
    """What one document cost at one stage, and which row of which part holds its result.

    ``cost_microusd`` is null where no price is known. ``reused_from`` names the earlier job that made (and paid for)
    what was taken over: here it took no seconds and cost 0. Answers that gave no row stand in ``requests`` alone.
    """

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_reuse", "stage_hash", "content_hash"),)
    job_id: Mapped[str] = _job()
    stage: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    stage_hash: Mapped[str]
    content_hash: Mapped[str]
    part: Mapped[str]
    row: Mapped[int]
    tokens_in: Mapped[int] = mapped_column(Big)
    tokens_out: Mapped[int] = mapped_column(Big)
    tokens_asked: Mapped[int | None] = mapped_column(Big)
    seconds: Mapped[float]
    latency_seconds: Mapped[float | None]
    cost_microusd: Mapped[int | None] = mapped_column(Big)
    price: Mapped[str | None]
    reused_from: Mapped[str | None]


class ContextRow(Base):
    """A context that a part's slot file has the slots of: the one at ``place`` (from 0) of those of its ``row``.

    What is asked about a context decides nothing about its slots: whoever asks something else takes them from there.
    """

    __tablename__ = "contexts"
    __table_args__ = (Index("ix_contexts_known", "stage_hash", "context_hash"),)
    job_id: Mapped[str] = _job()
    part: Mapped[str] = mapped_column(primary_key=True)
    context_hash: Mapped[str] = mapped_column(primary_key=True)
    stage_hash: Mapped[str]
    row: Mapped[int]
    place: Mapped[int]


class Draft(Base):
    """What one model did for one answer that was drafted for: the target (``place`` 0), or one that drafted for it.

    ``drafted`` tokens were proposed to the target, ``accepted`` of them stand in the answer. Max-Gram, which copies,
    has no ``parameters`` and makes no ``passes``. Answers that were taken over have no rows.
    """

    __tablename__ = "drafts"
    job_id: Mapped[str] = _job()
    stage: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[str]
    parameters: Mapped[int] = mapped_column(Big)
    passes: Mapped[int] = mapped_column(Big)
    drafted: Mapped[int] = mapped_column(Big)
    accepted: Mapped[int] = mapped_column(Big)


class Request(Base):
    """One HTTP call to a paid endpoint, written before it is sent.

    ``state``: sent -> done | failed (not billed) | lost. Nobody saw the end of a ``lost`` call (in flight at a kill, a
    broken connection, an unreadable answer): it may be on the endpoint's bill, for at most ``reserved_microusd``.
    """

    __tablename__ = "requests"
    __table_args__ = (Index("ix_requests_document", "job_id", "stage", "seq"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    stage: Mapped[int]
    seq: Mapped[int] = mapped_column(Big)
    attempt: Mapped[int]
    state: Mapped[str]
    sent_at: Mapped[float]
    finished_at: Mapped[float | None]
    reserved_microusd: Mapped[int | None] = mapped_column(Big)
    cost_microusd: Mapped[int | None] = mapped_column(Big)
    price: Mapped[str | None]
    tokens_in: Mapped[int | None]
    tokens_cached: Mapped[int | None]
    tokens_out: Mapped[int | None]
    response: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)


class Evaluation(Base):
    """A metric over the documents of a job, from 0 to 1, with its 95% bootstrap interval; one row per metric and rate.

    ``scored`` of ``documents`` rows of the corpus have it: the others were refused on the way, or are dead. Where none
    has, ``value``, ``low`` and ``high`` are null. Tokens are those of what is scored.
    """

    __tablename__ = "evaluations"
    job_id: Mapped[str] = _job()
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task: Mapped[str | None]
    metric: Mapped[str]
    rate: Mapped[float | None]
    documents: Mapped[int] = mapped_column(Big)
    scored: Mapped[int] = mapped_column(Big)
    value: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    tokens_original: Mapped[int | None] = mapped_column(Big)
    tokens_compressed: Mapped[int | None] = mapped_column(Big)
    tokens_prompt: Mapped[int | None] = mapped_column(Big)


class Artifact(Base):
    """A file a job made beside its data: the report, the rejections."""

    __tablename__ = "artifacts"
    job_id: Mapped[str] = _job()
    name: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    created_at: Mapped[float]


class Budget(Base):
    """Money a job may spend. ``reserved + spent`` never exceeds ``limit``: a call reserves its worst case first."""

    __tablename__ = "budgets"
    job_id: Mapped[str] = _job()
    limit_microusd: Mapped[int] = mapped_column(Big)
    reserved_microusd: Mapped[int] = mapped_column(Big, default=0)
    spent_microusd: Mapped[int] = mapped_column(Big, default=0)


class Pace(Base):
    """A rate limit shared by all workers: the time at which the next unit may pass (GCRA)."""

    __tablename__ = "paces"
    name: Mapped[str] = mapped_column(primary_key=True)
    free_at: Mapped[float]


class Leader(Base):
    """Who may run a single-holder task (the reaper) until when."""

    __tablename__ = "leaders"
    name: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    until: Mapped[float]
