"""Corpus -> documents -> shards -> SQL -> doorbell: the submission of a job. Streams; memory does not grow with it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain, islice
from typing import Any, Protocol

from sqlalchemy import Engine, Row, select, update

from pipeline import collecting
from pipeline.cutting import MAX_CHARACTERS, cut, most_documents
from pipeline.shard_rows import INPUT_STAGE
from pipeline.stages import build, check, stage_hashes
from pipeline.storage.filesystem import is_local, resolve_path
from pipeline.storage.parts import table_from_rows, write_part
from pipeline.storage.readers import BadRow, RawDocument, fingerprint, read_corpus
from pipeline.storage.reaping import open_publications
from pipeline.storage.requests import ensure_budget
from pipeline.storage.shards import ACTIVE, PUBLISH, shard_row
from pipeline.storage.sql import db_now, insert_ignore, reading
from schemas.align import WHOLE_CORPUS
from schemas.base import StageBase
from schemas.document import Document
from schemas.job import JobSpec, digest
from schemas.records import INPUT
from schemas.stage import GenerateSpec
from schemas.tables import Budget, DocumentRow, Job, Part, Rejection, Shard

log = logging.getLogger(__name__)

BATCH = 2_048  # documents registered in one transaction
SAMPLE = 8  # texts an estimate may count real tokens in
SAMPLE_CHARACTERS = 50_000  # of each: a tokenizer takes some 150 times a text's size
LOOKAHEAD = 4_096  # documents known before the first shard is cut, so that a small corpus still feeds all workers


Estimator = Callable[[int, int, Sequence[str]], dict[str, Any]]
"""(documents, characters, a few texts) -> what the job is expected to take, as JSON values."""


class Doorbell(Protocol):
    """Tells workers that a shard waits. It may be lost or ring twice: SQL decides what is done."""

    def ring(self, job_id: str, shard_id: str, kind: str, priority: str) -> None:
        """Ring for one shard of a stage of this kind. Raises ``DoorbellSilentError`` where nobody hears it."""
        ...


@dataclass(frozen=True, slots=True)
class Submission:
    """What came of submitting: ``created`` is false where this very job was there already."""

    job_id: str
    created: bool
    documents: int
    collapsed: int
    rejected: int


class DoorbellSilentError(RuntimeError):
    """The bell cannot be rung now. Nothing is lost: the shard stands in SQL, and a reaper rings later."""


class SubmissionStoppedError(RuntimeError):
    """The job was cancelled or stopped while it was being submitted."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides which job a spec makes: same input, same spec, same weights, the same job."""

    spec_hash: str
    input_hash: str
    stage_hashes: tuple[str, ...]

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return digest([self.input_hash, self.spec_hash, list(self.stage_hashes)])[:12]


def identify(spec: JobSpec) -> Identity:
    """Reads the whole input, and the weights' digests. Raises ``InputError``, ``ModelError``."""
    identity = Identity(spec.spec_hash(), fingerprint(spec.input), tuple(stage_hashes(spec)))
    check(spec)
    return identity


def existing_job(engine: Engine, identity: Identity) -> Row[Any] | None:
    """The job that submitting this now would only report, or continue."""
    with reading(engine) as connection:
        return connection.execute(select(Job).where(Job.id == identity.job_id)).one_or_none()


def raise_budget(engine: Engine, spec: JobSpec, job_id: str) -> bool:
    """Give a job the limit that ``spec`` names, where that is more than it had. False: it is not."""
    with reading(engine) as connection:
        had = connection.execute(select(Budget.limit_microusd).where(Budget.job_id == job_id)).scalar_one_or_none()
    higher = [limit for limit in _budgets(spec) if had is not None and limit > had]
    for limit in higher:
        ensure_budget(engine, job_id, limit)
    return bool(higher)


def retune(engine: Engine, spec: JobSpec, job_id: str) -> bool:
    """Give a job the settings of ``spec`` that change only its speed, budgets aside. False: it has them already."""
    with engine.begin() as connection:
        had = connection.execute(select(Job.spec).where(Job.id == job_id)).scalar_one()
        stages = [old | _speed(stage, old) for old, stage in zip(had["stages"], spec.stages, strict=True)]
        if stages == had["stages"]:
            return False
        connection.execute(update(Job).where(Job.id == job_id).values(spec=had | {"stages": stages}))
    return True


def _speed(stage: StageBase, old: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stage changes only its speed. A setting that is newer than the job is none while it has its default."""
    said = stage.model_dump(mode="json", include=set(stage.SPEED_ONLY - {"budget_usd"}))
    usual = {name: one.default for name, one in type(stage).model_fields.items()}
    return {name: value for name, value in said.items() if name in old or value != usual[name]}


def submit(
    engine: Engine,
    spec: JobSpec,
    doorbell: Doorbell,
    *,
    workers: int = 1,
    max_attempts: int = 3,
    estimator: Estimator | None = None,
    progress: Callable[[int], None] = lambda documents: None,
    identity: Identity | None = None,
) -> Submission:
    """Submit ``spec``, or continue a submission that was cut off; a job that stands already is only reported.

    ``identity`` is that of ``spec``, where the caller has it: it costs another reading of the whole input.
    Raises ``InputError`` (what cannot be read), ``ModelNotFound``, ``SubmissionStoppedError``, database errors.
    """
    corpus = read_corpus(spec.input)
    first = next(corpus)  # an empty corpus fails here, before there is a job
    identity = identity or identify(spec)
    job_id = identity.job_id
    row = {
        "id": job_id,
        "name": spec.name,
        "state": "submitting",
        "spec": spec.model_dump(mode="json"),
        "spec_hash": identity.spec_hash,
        "input_hash": identity.input_hash,
        "stage_hashes": list(identity.stage_hashes),
        "output": f"{_from_anywhere(spec.output.path)}/{spec.name}-{job_id}",
        "workers": workers,
    }
    with engine.begin() as connection:
        insert_ignore(connection, Job, [{**row, "created_at": time.time()}])
        job = connection.execute(select(Job).where(Job.id == job_id)).one()
    for limit in _budgets(spec):
        ensure_budget(engine, job_id, limit)
    if job.submitted_at is not None:
        return Submission(job_id, False, job.documents, job.collapsed, 0)
    return _Producer(engine, spec, job, doorbell, max_attempts, estimator, progress).run(chain([first], corpus))


def _from_anywhere(output: str) -> str:
    """``output`` such that workers and later commands, in whatever folder they run, find the same place."""
    filesystem, place = resolve_path(output)
    return place if is_local(filesystem) else output.rstrip("/")


def _budgets(spec: JobSpec) -> list[int]:
    """The limits of the job in micro-dollars: one, where a hosted stage names it."""
    limits = [stage.budget_usd for stage in spec.stages if isinstance(stage, GenerateSpec) and stage.budget_usd]
    return [int(Decimal(limit) * 1_000_000) for limit in limits]


class _Producer:
    """One submission in progress. Done again after a kill, it makes the same rows: every insert is harmless twice."""

    def __init__(
        self,
        engine: Engine,
        spec: JobSpec,
        job: Row[Any],
        doorbell: Doorbell,
        max_attempts: int,
        estimator: Estimator | None,
        progress: Callable[[int], None],
    ) -> None:
        self._engine, self._spec, self._job_id, self._workers = engine, spec, job.id, job.workers
        self._fs, self._root = resolve_path(job.output)
        self._doorbell, self._max_attempts, self._progress = doorbell, max_attempts, progress
        self._stage, self._whole = build(spec, 0), spec.stages[0].kind in WHOLE_CORPUS
        self._estimator, self._sample = estimator, deque[str](maxlen=SAMPLE)
        self._next_seq = self._collapsed = self._rejected = self._read = 0

    @collecting.seldom()
    def run(self, corpus: Iterable[RawDocument | BadRow]) -> Submission:
        """Read the corpus to its end; shards are worked on from the first one cut."""
        waiting: deque[Document] = deque()
        for batch in _batches(corpus):
            waiting.extend(self._register(batch))
            self._sample.extend(document.parts.render()[:SAMPLE_CHARACTERS] for document in islice(waiting, SAMPLE))
            self._progress(self._next_seq)
            while not self._whole and (len(waiting) > LOOKAHEAD or _characters(waiting) > MAX_CHARACTERS):
                self._cut_one(waiting)
        while waiting:
            self._cut_one(waiting)
        counts = {"documents": self._next_seq, "collapsed": self._collapsed, "submitted_at": db_now()}
        if self._estimator is not None:
            counts["estimate"] = self._estimator(self._next_seq, self._read, list(self._sample))
        with self._engine.begin() as connection:
            connection.execute(update(Job).where(Job.id == self._job_id).values(**counts))
            submitting = update(Job).where(Job.id == self._job_id, Job.state == "submitting")
            connection.execute(submitting.values(state="running"))
        if self._next_seq == 0:  # no shard will ever end, so none opens the publication, and it rings for none
            open_publications(self._engine, self._max_attempts)
            self._ring(PUBLISH)
        return Submission(self._job_id, True, self._next_seq, self._collapsed, self._rejected)

    def _register(self, batch: list[RawDocument | BadRow]) -> list[Document]:
        """Give new documents their place in the job; collapse repetitions, reject what is malformed or clashes."""
        documents: list[Document] = []
        rejections = [_rejection(self._job_id, row) for row in batch if isinstance(row, BadRow)]
        found = [one for row in batch if isinstance(row, RawDocument) for one in copies(row, self._spec.rates)]
        known = self._known([one.id for one in found])
        for one in found:
            first = known.get(one.id)
            if first is None or first.source == one.source:
                seq = self._next_seq if first is None else first.seq  # known by this very source: resubmitted
                self._next_seq = seq + 1
                known[one.id] = replace(one, seq=seq)
                documents.append(known[one.id])
            elif first.content_hash == one.content_hash:
                self._collapsed += 1
            else:
                rejections.append(_rejection(self._job_id, _clash(one.id, first.source, one.source)))
        self._rejected += len(rejections)
        rows = [
            {"job_id": self._job_id, "seq": d.seq, "doc_id": d.id, "content_hash": d.content_hash, "source": d.source}
            for d in documents
        ]
        with self._engine.begin() as connection:
            insert_ignore(connection, DocumentRow, [{**row, "status": "pending"} for row in rows])
            insert_ignore(connection, Rejection, rejections)
        return documents

    def _known(self, ids: list[str]) -> dict[str, Any]:
        columns = DocumentRow.doc_id, DocumentRow.seq, DocumentRow.content_hash, DocumentRow.source
        query = select(*columns).where(DocumentRow.job_id == self._job_id, DocumentRow.doc_id.in_(ids))
        with reading(self._engine) as connection:
            return {row.doc_id: row for row in connection.execute(query)}

    def _cut_one(self, waiting: deque[Document]) -> None:
        """Cut the first shard off ``waiting``: its documents to Parquet, its row to SQL, then the bell."""
        start, stop = self._first_range(waiting)
        documents = []
        while waiting and waiting[0].seq < stop:
            documents.append(waiting.popleft())
            self._read += _size(documents[-1])
        path = f"_input/{start}-{stop}.parquet"
        table = table_from_rows(list(map(_input_row, documents)), INPUT)
        info = write_part(self._fs, f"{self._root}/{path}", table, INPUT)
        part = {"job_id": self._job_id, "path": path, "stage": INPUT_STAGE, "start": start, "stop": stop}
        shard = shard_row(self._job_id, 0, start, stop, self._max_attempts)
        with self._engine.begin() as connection:
            state = connection.execute(select(Job.state).where(Job.id == self._job_id)).scalar_one()
            if state not in ACTIVE:
                raise SubmissionStoppedError(f"job {self._job_id} was {state} while it was being submitted")
            insert_ignore(connection, Part, [{**part, "rows": len(documents), "bytes": info.bytes}])
            insert_ignore(connection, Shard, [shard])
        self._ring(shard["id"])

    def _first_range(self, waiting: Sequence[Document]) -> tuple[int, int]:
        if self._whole:
            return waiting[0].seq, waiting[-1].seq + 1
        sizes = ((document, _size(document)) for document in waiting)
        work = ((document.seq, size, self._stage.work_seconds(size)) for document, size in sizes)
        most = most_documents(self._next_seq, self._workers)
        return next(cut(work, self._spec.stages[0].seconds_per_shard, most))

    def _ring(self, shard_id: str) -> None:
        kind = PUBLISH if shard_id == PUBLISH else self._spec.stages[0].kind
        try:
            self._doorbell.ring(self._job_id, shard_id, kind, self._spec.priority)
        except DoorbellSilentError as error:
            log.warning("shard %s is left to the reaper: %s", shard_id, error)
            return
        with self._engine.begin() as connection:
            this = update(Shard).where(Shard.job_id == self._job_id, Shard.id == shard_id)
            connection.execute(this.values(rung_at=db_now()))


def copies(raw: RawDocument, rates: Sequence[float]) -> Iterator[Document]:
    """The row as a document without a place yet; where the job asks for several rates, once at each of them.

    Copies stand side by side, so that their shard scores them once. Each has an id and a content hash of its own: it is
    rejected, billed and taken over by itself.
    """
    content = raw.parts.content_hash()
    if not rates:
        yield Document(-1, raw.id or content, raw.parts, content, raw.source, raw.answer)
    for rate in rates:
        name, source = f"{raw.id or content}@{rate:g}", f"{raw.source} at rate {rate:g}"
        yield Document(-1, name, raw.parts, digest([content, rate]), source, raw.answer, rate)


def _batches(rows: Iterable[RawDocument | BadRow]) -> Iterator[list[RawDocument | BadRow]]:
    batch: list[RawDocument | BadRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.parts.characters if isinstance(row, RawDocument) else 0
        if len(batch) >= BATCH or size >= MAX_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(document: Document) -> int:
    return document.parts.characters


def _characters(documents: Iterable[Document]) -> int:
    return sum(map(_size, documents))


def _input_row(document: Document) -> dict[str, Any]:
    return {
        "seq": document.seq,
        "doc_id": document.id,
        "content_hash": document.content_hash,
        "source": document.source,
        "instruction": document.parts.instruction,
        "contexts": list(document.parts.contexts),
        "question": document.parts.question,
        "answer": document.answer,
        "rate": document.rate,
    }


def _rejection(job_id: str, row: BadRow) -> dict[str, Any]:
    place = {"job_id": job_id, "stage": INPUT_STAGE, "source": row.source, "doc_id": row.doc_id}
    return {**place, "status": "rejected", "code": row.code, "reason": row.reason}


def _clash(doc_id: str, first: str, second: str) -> BadRow:
    reason = f"id {doc_id!r} stands at {first} with other content; this one, at {second}, is left out"
    return BadRow(second, "clashing_id", reason, doc_id)
