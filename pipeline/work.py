"""One shard, from claim to commit. Runs the same under Celery, in a test, or in a notebook."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.known_contexts import known_contexts
from pipeline.lease import Lease
from pipeline.models import ModelError, ModelPool
from pipeline.publishing import publish_job
from pipeline.reuse import taken_over
from pipeline.shard_rows import (
    JobView,
    Settled,
    WrittenPart,
    context_rows,
    draft_rows,
    next_shards,
    read_documents,
    rejection_rows,
    usage_rows,
    write_rows,
)
from pipeline.stages import Halt, Outcome, Refusal, Run, Stage, Stopped, build, stage_hash
from pipeline.storage import shards
from pipeline.storage.jobs import stop_job
from pipeline.storage.parts import delete
from pipeline.storage.requests import SqlLedger
from pipeline.storage.shards import PUBLISH, Claim, Commit
from pipeline.storage.sql import patiently
from schemas.align import WHOLE_CORPUS
from schemas.document import Document

log = logging.getLogger(__name__)

BISECT_FROM = 2  # the attempt from which a failing batch is taken apart; the first failure may be the machine's
RETRY_SECONDS = 2.0

# A wrong key, a missing model, a full disk: no document's fault, and no retry mends it.
MENDABLE = Halt, ModelError, OSError
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}

Ending = Literal["done", "returned", "failed", "halted", "lost"]


class Overdue(BaseException):
    """The shard stood still longer than any may. Its attempt counts; no document of it is to blame above others.

    No ``Exception``: it strikes anywhere, and what turns any of those into an error of its own would name a false one.
    """


# What says nothing about a document: taking the batch apart for it would declare the innocent dead.
NO_DOCUMENTS_FAULT = Stopped, Overdue, SQLAlchemyError, *MENDABLE


class DeviceLost(RuntimeError):  # noqa: N818
    """The accelerator is unusable for the rest of this process: the process must end and another take over."""


def work_on(engine: Engine, claim: Claim, models: ModelPool, lease: Lease, max_attempts: int) -> Ending:
    """Do the claimed shard and commit it; says what became of it. The caller rings for what is pending then.

    Raises only ``DeviceLost``, and what a database raises that stays away: the lease then runs out by itself.
    """
    written: WrittenPart | None = None
    try:
        job = JobView.load(engine, claim.job_id)
        if claim.shard_id == PUBLISH:
            commit = publish_job(engine, claim, job, lambda: _go_on(lease))
        else:
            commit, written = _work(engine, claim, job, models, lease, max_attempts)
        finished = patiently(lambda: shards.finish(engine, claim, commit))
    except Stopped:
        patiently(lambda: shards.release(engine, claim, error="handed back: its worker was stopping", charge=False))
        return "returned"
    except MENDABLE as error:
        if _may_pass(error) and claim.attempt < claim.attempt_limit:
            return _fail(engine, claim, error)
        _halt(engine, claim, error)
        return "halted"
    except DeviceLost:
        raise
    except (Exception, Overdue) as error:  # noqa: BLE001  a stage may raise anything: tried again, then bisected
        return _fail(engine, claim, error)
    if finished:
        return "done"
    if written:
        _discard(written)
    # A publication whose job was cancelled still holds its own.
    patiently(lambda: shards.release(engine, claim, error=None, charge=False))
    return "lost"


def _discard(part: WrittenPart) -> None:
    try:
        delete(part.fs, part.location)
        if part.beside:
            delete(part.fs, part.beside)
    except OSError as error:  # a network's, mostly; the publication removes what no shard committed
        log.warning("%s is not removed yet: %s", part.location, error)


def _go_on(lease: Lease) -> None:
    lease.progress(0, 0)
    if lease.stopping():
        raise Stopped


def _may_pass(error: Exception) -> bool:
    """Whether it is an input or output error that may be gone in a moment: a network's, mostly."""
    return isinstance(error, OSError) and error.errno not in LASTING


def _fail(engine: Engine, claim: Claim, error: BaseException) -> Literal["failed"]:
    log.error("shard %s of job %s failed", claim.shard_id, claim.job_id, exc_info=error)
    delay, reason = RETRY_SECONDS * claim.attempt, _one_line(error)
    patiently(lambda: shards.release(engine, claim, error=reason, delay=delay))
    return "failed"


def _halt(engine: Engine, claim: Claim, error: Exception) -> None:
    code = error.code if isinstance(error, Halt) else "error"
    reason = _one_line(error) if isinstance(error, OSError) else str(error)
    # Who lost the fence has no say: the shard's new holder may be well, or the job done.
    if patiently(lambda: shards.release(engine, claim, error=reason, charge=False)):
        stop_job(engine, claim.job_id, code, reason)


def _work(
    engine: Engine, claim: Claim, job: JobView, models: ModelPool, lease: Lease, max_attempts: int
) -> tuple[Commit, WrittenPart | None]:
    began = time.perf_counter()
    documents = read_documents(engine, claim, job)
    ledger = SqlLedger(engine, job.id, claim.stage, claim.attempt)
    folder = f"{job.output}/{job.spec.stages[claim.stage].kind}"
    known = partial(known_contexts, engine, job.stage_hashes[claim.stage])
    run = Run(models, ledger, lease.stopping, lease.progress, lease.say, folder, job.output, known)
    settled = _settle(engine, claim, job, documents, run)
    written = write_rows(claim, job, settled)
    commit = Commit(
        seconds=time.perf_counter() - began,
        documents=len(documents),
        tokens=lease.done[1],
        part=written.row if written else None,
        usage=usage_rows(claim, job, settled, written.row["path"]) if written else (),
        drafts=draft_rows(claim, settled),
        contexts=context_rows(claim, job, settled, written.row["path"]) if written else (),
        rejections=rejection_rows(claim, settled),
        next_shards=next_shards(claim, job, settled, max_attempts),
        last_stage=job.is_last(claim.stage),
    )
    return commit, written


def _settle(engine: Engine, claim: Claim, job: JobView, documents: list[Document], run: Run) -> list[Settled]:
    """An outcome for every document, in order: taken over where an earlier job has it, else by the stage."""
    kind = job.spec.stages[claim.stage].kind
    taken = taken_over(engine, job.id, kind, job.stage_hashes[claim.stage], documents)
    run.progress(len(taken), 0)
    fresh = [document for document in documents if document.seq not in taken]
    if fresh:
        _check_same_weights(job, claim.stage)
    stage = build(job.spec, claim.stage)
    may_bisect = claim.attempt >= BISECT_FROM and kind not in WHOLE_CORPUS
    outcomes = _run_bisecting(stage, fresh, run, may_bisect=may_bisect) if fresh else []
    made = dict(zip((document.seq for document in fresh), outcomes, strict=True))
    return [
        Settled(document, *taken[document.seq]) if document.seq in taken else Settled(document, made[document.seq])
        for document in documents
    ]


def _check_same_weights(job: JobView, index: int) -> None:
    """Other weights under the same name would pass for the job's own, in its rows and in every later job's reuse."""
    if stage_hash(job.spec, index, job.stage_hashes) != job.stage_hashes[index]:
        raise Halt(
            f"the model of the {job.spec.stages[index].kind} stage, or this version of contextmill, is "
            "not what the job was submitted with: bring that back and resume, or submit the job anew"
        )


def _run_bisecting(stage: Stage, documents: Sequence[Document], run: Run, *, may_bisect: bool) -> list[Outcome]:
    try:
        outcomes = stage.run(documents, run)
    except NO_DOCUMENTS_FAULT:
        raise
    except Exception as error:  # a stage may raise anything: the point is to find out for which document
        if _device_lost(error):
            raise DeviceLost(_one_line(error)) from error
        if not may_bisect:
            raise
        if len(documents) == 1:
            return [Refusal("failed", _one_line(error), dead=True)]
        middle = len(documents) // 2
        halves = documents[:middle], documents[middle:]
        return [outcome for half in halves for outcome in _run_bisecting(stage, half, run, may_bisect=True)]
    if len(outcomes) != len(documents):
        raise RuntimeError(f"{type(stage).__name__} gave {len(outcomes)} outcomes for {len(documents)} documents")
    return outcomes


def _device_lost(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not imported here: a job without models must not pay for it
    return torch is not None and isinstance(error, torch.AcceleratorError)


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")  # else PostgreSQL would refuse it
    return text if len(text) <= 500 else text[:497] + "..."
