"""What compression did to one document: its row, found by the document's id, and what of the original it left out."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, func, select
from sqlalchemy.engine import Connection

from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import read_rows
from pipeline.storage.sql import reading
from schemas.tables import DocumentRow, Job, Rejection, Usage

Span = tuple[int, int]

MOST_IDS = 10_000
"""Ids among which the nearest to an unknown one is looked for."""


class UnknownDocumentError(ValueError):
    """No document of this id; the text names those that come near."""


class NotCutError(ValueError):
    """The document has no compressed prompt, or its row is gone; the text says why."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A document before and after compression.

    ``kept``: characters of ``text`` (from, to), sorted and disjoint; None where its method does not say. ``listed``:
    those of ``compressed`` that were added, a list of removed phrases.
    """

    job_id: str
    doc_id: str
    source: str
    method: str
    tokens_original: int
    tokens_asked: int
    tokens_compressed: int
    copied: bool
    text: str
    compressed: str
    kept: tuple[Span, ...] | None
    listed: Span | None = None

    @property
    def removed(self) -> tuple[Span, ...]:
        """Characters of ``text`` (from, to) that are not in the compressed prompt; none where that is not known."""
        if self.kept is None:
            return ()
        edges = [0, *(place for span in self.kept for place in span), len(self.text)]
        return tuple((begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end)

    def pieces(self, characters: int | None = None) -> Iterator[tuple[str, bool]]:
        """The text, or its first ``characters``, in stretches, and whether each was kept."""
        length = len(self.text) if characters is None else min(characters, len(self.text))
        place = 0
        for begin, end in (*(self.kept or ()), (len(self.text), len(self.text))):
            for stop, kept in ((begin, False), (end, True)):
                if place < (stop := min(stop, length)):
                    yield self.text[place:stop], kept
                    place = stop
            if place == length:
                return


def merged(kept: Sequence[int]) -> tuple[Span, ...]:
    """The column ``kept`` as sorted, disjoint spans: reordered contexts, and a blank line that stands in two places."""
    found: list[Span] = []
    for begin, end in sorted(zip(kept[::2], kept[1::2], strict=True)):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif begin < end:
            found.append((begin, end))
    return tuple(found)


def find_cut(engine: Engine, doc_id: str, job_id: str | None = None) -> tuple[Cut, tuple[str, ...]]:
    """The newest job's cut of the document (or that of ``job_id``), and the ids of other jobs that have one.

    Raises ``UnknownDocumentError``, ``NotCutError``.
    """
    with reading(engine) as connection:
        jobs = _jobs_of(connection, doc_id, job_id)
        if not jobs:
            raise _unknown(connection, doc_id, job_id)
        rows = [(job, usage) for job in jobs if (usage := _usage(connection, job))]
        if not rows:
            raise _not_cut(connection, jobs[0])
    (job, usage), *others = rows
    return read_cut(job, usage.part), tuple(other.id for other, _ in others)


def typical_cuts(engine: Engine, job_id: str) -> list[tuple[str, Cut]]:
    """Of a job's shortened documents the one that kept most of its tokens, the middle one and the one that kept least.

    None where the job compresses nothing; those whose row is gone, or has no map, are left out.
    """
    with reading(engine) as connection:
        job = connection.execute(select(Job.id, Job.output, Job.spec).where(Job.id == job_id)).one()
        kinds = [stage["kind"] for stage in job.spec["stages"]]
        rows = _extremes(connection, job_id, kinds.index("compress")) if "compress" in kinds else []
    found = []
    for row in rows:
        what = {row.total: "Least cut", 1: "Most cut"}.get(row.place, "Typical") if row.total > 1 else "Typical"
        with contextlib.suppress(NotCutError):
            cut = read_cut(row, row.part)
            found += [(what, cut)] if cut.kept is not None else []
    return found


def _extremes(connection: Connection, job_id: str, stage: int) -> list[Any]:
    """Rows at both ends and in the middle by the share of tokens that was kept, the highest first."""
    share = Usage.tokens_out * 1.0 / Usage.tokens_in
    ranked = (
        select(
            Usage.seq,
            Usage.part,
            func.row_number().over(order_by=(share, Usage.seq)).label("place"),
            func.count().over().label("total"),
        )
        .where(Usage.job_id == job_id, Usage.stage == stage, Usage.tokens_out < Usage.tokens_in)
        .subquery()
        .c
    )
    columns = Job.id, Job.output, DocumentRow.seq, DocumentRow.doc_id, DocumentRow.source
    query = (
        select(*columns, ranked.part, ranked.place, ranked.total)
        .join(DocumentRow, DocumentRow.job_id == Job.id)
        .join(ranked.seq.table, ranked.seq == DocumentRow.seq)
        .where(Job.id == job_id, ranked.place.in_((1, (ranked.total + 1) // 2, ranked.total)))
    )
    return list(connection.execute(query.order_by(ranked.place.desc())))


def read_cut(document: Any, part: str) -> Cut:
    """The cut of ``document`` (id and output of its job, doc_id, seq, source), whose row lies in ``part``, or in
    ``data/`` where ``_parts/`` was removed. Raises ``NotCutError`` where it is in neither."""
    fs, root = resolve_path(document.output)
    try:
        try:
            rows = read_rows(fs, f"{root}/{part}", document.seq, document.seq + 1).to_pylist()
        except FileNotFoundError:
            import pyarrow.dataset as pads  # and pandas with it, where there is one

            data = pads.dataset(f"{root}/data", filesystem=fs, format="parquet")
            rows = data.to_table(filter=pads.field("seq") == document.seq).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise NotCutError(
            f"the row of document {document.doc_id} cannot be read in {document.output}: {error}"
        ) from error
    if not rows:
        raise NotCutError(f"{document.output} has no row of document {document.doc_id} any more")
    row = rows[0]
    kept, listed = row.get("kept"), row.get("listed")
    return Cut(
        job_id=document.id, doc_id=document.doc_id, source=document.source, method=row["compress_method"],
        tokens_original=row["tokens_original"], tokens_asked=row["tokens_asked"],
        tokens_compressed=row["tokens_compressed"], copied=row["copied"], text=row["text"],
        compressed=row["compressed"], kept=None if kept is None else merged(kept),
        listed=None if listed is None else (listed[0], listed[1]),
    )  # fmt: skip


def _jobs_of(connection: Connection, doc_id: str, job_id: str | None) -> list[Any]:
    """The document in every job that has it, newest first."""
    columns = Job.id, Job.state, Job.spec, Job.output, DocumentRow.seq, DocumentRow.doc_id, DocumentRow.source
    query = select(*columns, DocumentRow.status).join(DocumentRow, DocumentRow.job_id == Job.id)
    query = query.where(DocumentRow.doc_id == doc_id).order_by(Job.created_at.desc(), Job.id)
    return list(connection.execute(query if job_id is None else query.where(Job.id == job_id)))


def _usage(connection: Connection, job: Any) -> Any:
    kinds = [stage["kind"] for stage in job.spec["stages"]]
    if "compress" not in kinds:
        return None
    query = select(Usage.part).where(Usage.job_id == job.id, Usage.seq == job.seq)
    return connection.execute(query.where(Usage.stage == kinds.index("compress"))).one_or_none()


def _not_cut(connection: Connection, job: Any) -> NotCutError:
    name = f"document {job.doc_id} of job {job.id}"
    if "compress" not in [stage["kind"] for stage in job.spec["stages"]]:
        return NotCutError(f"{name}: the job has no compress stage, nothing was cut")
    refused = _rejection(connection, job.doc_id, job.id)
    if refused is not None:
        return NotCutError(f"{name} is {refused.status}: {refused.reason}")
    return NotCutError(f"{name} is not compressed yet: the job is {job.state}")


def _rejection(connection: Connection, doc_id: str, job_id: str | None) -> Any:
    query = select(Rejection.status, Rejection.reason).where(Rejection.doc_id == doc_id)
    return connection.execute(query if job_id is None else query.where(Rejection.job_id == job_id)).first()


def _unknown(connection: Connection, doc_id: str, job_id: str | None) -> ValueError:
    where = "this database" if job_id is None else f"job {job_id}"
    refused = _rejection(connection, doc_id, job_id)
    if refused is not None:
        return NotCutError(f"document {doc_id} was {refused.status}: {refused.reason}")
    near = _nearest(connection, doc_id, job_id)
    return UnknownDocumentError(
        f"no document {doc_id!r} in {where}" + (f"; there are {', '.join(near)}" if near else "")
    )


def _nearest(connection: Connection, doc_id: str, job_id: str | None) -> list[str]:
    """Ids that begin so (a document at several rates, first of all), else those spelt alike, else any."""
    query = select(DocumentRow.doc_id).distinct().order_by(DocumentRow.doc_id)
    query = query if job_id is None else query.where(DocumentRow.job_id == job_id)
    for beginning in (f"{doc_id}@", doc_id):
        found = query.where(DocumentRow.doc_id.startswith(beginning, autoescape=True)).limit(5)
        if ids := list(connection.scalars(found)):
            return ids
    ids = list(connection.scalars(query.limit(MOST_IDS)))
    return difflib.get_close_matches(doc_id, ids, n=3, cutoff=0.6) or ids[:3]
