"""A shard's documents in, and what its outcomes mean in rows out: Parquet, usage, rejections, next shards."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
from sqlalchemy import Engine, select

from pipeline import collecting
from pipeline.cutting import cut
from pipeline.stages import Outcome, Refusal, Result, build
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import read_rows, slots_path, table_from_rows, write_part
from pipeline.storage.shards import Claim, shard_row
from pipeline.storage.sql import reading
from schemas.document import Document, PromptParts, context_hash
from schemas.job import JobSpec
from schemas.records import REUSED_FROM, STAGE_FIELDS, part_schema
from schemas.tables import Job, Part

if TYPE_CHECKING:
    from pipeline.memory.packing import Packed

INPUT_STAGE = -1  # the "stage" under which the producer's input parts and rejections stand


@dataclass(frozen=True, slots=True)
class JobView:
    """The columns of a job that its shards need."""

    id: str
    spec: JobSpec
    stage_hashes: list[str]
    output: str

    @classmethod
    def load(cls, engine: Engine, job_id: str) -> JobView:
        """Read it from the database."""
        with reading(engine) as connection:
            row = connection.execute(select(Job).where(Job.id == job_id)).one()
        return cls(row.id, JobSpec.model_validate(row.spec), row.stage_hashes, row.output)

    def is_last(self, stage: int) -> bool:
        """Whether nothing but the publication follows this stage."""
        return stage == len(self.spec.stages) - 1


@dataclass(frozen=True, slots=True)
class Settled:
    """A document with its outcome; ``reused_from`` names the earlier job that made it, where it was taken over."""

    document: Document
    outcome: Outcome
    reused_from: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A part file on disk that no manifest row names yet."""

    fs: pafs.FileSystem
    location: str
    row: dict[str, Any]  # its manifest row
    beside: str | None = None  # its slot file


@collecting.seldom()
def read_documents(engine: Engine, claim: Claim, job: JobView) -> list[Document]:
    """The shard's documents as the producer wrote them, with the columns of the stages before, in order of seq."""
    inputs = _rows(engine, claim, job, INPUT_STAGE)
    if claim.stage == 0:
        return [_document(row, {}) for row in inputs]
    before = {row["seq"]: row for row in _rows(engine, claim, job, claim.stage - 1)}
    names = [name for spec in job.spec.stages[: claim.stage] for name in _names(spec.kind)]
    # get: a part that an earlier version of contextmill wrote for this job may lack a column that was added since.
    return [
        _document(row, {name: before[row["seq"]].get(name) for name in names}) for row in inputs if row["seq"] in before
    ]


def _names(kind: str) -> list[str]:
    return [*STAGE_FIELDS[kind].names, *([REUSED_FROM[kind]] if kind in REUSED_FROM else [])]


def _rows(engine: Engine, claim: Claim, job: JobView, stage: int) -> list[dict[str, Any]]:
    query = (
        select(Part.path)
        .where(Part.job_id == job.id, Part.stage == stage, Part.start < claim.stop, Part.stop > claim.start)
        .order_by(Part.start)
    )
    with reading(engine) as connection:
        paths = [path for (path,) in connection.execute(query)]
    fs, root = resolve_path(job.output)
    return [row for path in paths for row in read_rows(fs, f"{root}/{path}", claim.start, claim.stop).to_pylist()]


def _document(row: dict[str, Any], fields: dict[str, Any]) -> Document:
    parts = PromptParts(row["instruction"], tuple(row["contexts"]), row["question"])
    who = row["seq"], row["doc_id"], parts, row["content_hash"], row["source"], row["answer"]
    return Document(*who, rate=row.get("rate"), fields=fields)


@collecting.seldom()
def write_rows(claim: Claim, job: JobView, settled: Sequence[Settled]) -> WrittenPart | None:
    """Write the results as one part whose name no other attempt has; None where every document was refused."""
    kept = [entry for entry in settled if isinstance(entry.outcome, Result)]
    if not kept:
        return None
    kinds = [spec.kind for spec in job.spec.stages[: claim.stage + 1]]
    schema = part_schema(kinds, {"job": job.id, "config_hash": job.stage_hashes[claim.stage]})
    fs, root = resolve_path(job.output)
    path = f"_parts/{claim.shard_id}-a{claim.attempt}-{uuid.uuid4().hex[:8]}.parquet"
    keys, beside = _write_slots(fs, root, path, kept)
    rows = [_part_row(entry, REUSED_FROM.get(kinds[-1])) | keys.get(entry.document.seq, {}) for entry in kept]
    info = write_part(fs, f"{root}/{path}", table_from_rows(rows, schema), schema)
    span = {"stage": claim.stage, "start": claim.start, "stop": claim.stop, "rows": len(kept)}
    sizes = {"bytes": info.bytes, "slots_bytes": fs.get_file_info(beside).size if beside else None}
    return WrittenPart(fs, f"{root}/{path}", {"job_id": job.id, "path": path, **span, **sizes}, beside)


def _write_slots(
    fs: pafs.FileSystem, root: str, part: str, kept: Sequence[Settled]
) -> tuple[dict[int, dict[str, str]], str | None]:
    """Write the slots of ``kept`` into the slot file of ``part``: the columns that say where, by seq, and the file."""
    results = {entry.document.seq: (entry.document.content_hash, entry.outcome) for entry in kept}
    found = {seq: (key, one) for seq, (key, one) in results.items() if isinstance(one, Result) and one.slots}
    if not found:
        return {}, None
    from pipeline.memory.store import write_slots  # torch, which other jobs need not pay for

    slots: dict[str, Packed] = {}
    keys: dict[str, str] = {}
    columns: dict[int, dict[str, str]] = {}
    for seq, (content, one) in found.items():
        assert one.slots is not None
        # Of one text and yet not the same to the last bit: halves of a shard that was bisected.
        key = content if content not in slots else f"{content}-{seq}"
        # What is asked about the same contexts has the same slots, which lie there once.
        key = keys.setdefault(one.fields["slots_sha256"], key)
        slots.setdefault(key, one.slots)
        columns[seq] = {"slots_file": slots_path(part), "slots_key": key}
        revision = one.fields["encoder_revision"]
    write_slots(fs, f"{root}/{slots_path(part)}", slots, revision)
    return columns, f"{root}/{slots_path(part)}"


def _part_row(entry: Settled, reused_from: str | None) -> dict[str, Any]:
    """``reused_from`` is the name of the stage's own column for it, if it has one."""
    document, outcome = entry.document, entry.outcome
    assert isinstance(outcome, Result)
    own = {
        "seq": document.seq,
        "doc_id": document.id,
        "content_hash": document.content_hash,
        "text": document.parts.render(),
        "answer": document.answer,
    }
    origin = {reused_from: entry.reused_from} if reused_from else {}
    return {**own, **document.fields, **outcome.fields, **origin}


@collecting.seldom()
def usage_rows(claim: Claim, job: JobView, settled: Sequence[Settled], part: str) -> list[dict[str, Any]]:
    """One row of ``usage`` per result; ``row`` is its place in the part, in the order ``write_rows`` keeps."""
    same = {
        "job_id": job.id,
        "stage": claim.stage,
        "stage_hash": job.stage_hashes[claim.stage],
        "part": part,
    }
    kept = [entry for entry in settled if isinstance(entry.outcome, Result)]
    return [{**same, "row": number, **_usage(entry)} for number, entry in enumerate(kept)]


def _usage(entry: Settled) -> dict[str, Any]:
    result = entry.outcome
    assert isinstance(result, Result)
    return {
        "seq": entry.document.seq,
        "content_hash": entry.document.content_hash,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "tokens_asked": result.tokens_asked,
        "seconds": result.seconds,
        "latency_seconds": result.latency_seconds,
        "cost_microusd": result.cost_microusd,
        "price": result.price,
        "reused_from": entry.reused_from,
    }


def context_rows(claim: Claim, job: JobView, settled: Sequence[Settled], part: str) -> list[dict[str, Any]]:
    """One row of ``contexts`` for each that became slots, of the first document that has it."""
    kept = [(entry.document, entry.outcome) for entry in settled if isinstance(entry.outcome, Result)]
    found: dict[str, dict[str, Any]] = {}
    slotted = [(row, *one) for row, one in enumerate(kept) if one[1].slots]
    for row, document, result in slotted:
        for place, text in enumerate(document.parts.contexts):
            if result.fields["context_slots"][place]:
                found.setdefault(context_hash(text), {"row": row, "place": place})
    same = {"job_id": job.id, "part": part, "stage_hash": job.stage_hashes[claim.stage]}
    return [{**same, "context_hash": key, **where} for key, where in found.items()]


def draft_rows(claim: Claim, settled: Sequence[Settled]) -> list[dict[str, Any]]:
    """Rows of ``drafts``, for answers that this job made itself."""
    return [
        {"job_id": claim.job_id, "stage": claim.stage, "seq": entry.document.seq, "place": place, **one}
        for entry in settled
        if isinstance(entry.outcome, Result) and not entry.reused_from
        for place, one in enumerate(entry.outcome.fields.get("drafts") or ())
    ]


def rejection_rows(claim: Claim, settled: Sequence[Settled]) -> list[dict[str, Any]]:
    """One row of ``rejections`` per refusal, with the document's ``seq`` besides."""
    return [
        {
            "job_id": claim.job_id,
            "stage": claim.stage,
            "source": entry.document.source,
            "doc_id": entry.document.id,
            "seq": entry.document.seq,
            "status": "dead" if entry.outcome.dead else "rejected",
            "code": entry.outcome.code,
            "reason": entry.outcome.reason,
        }
        for entry in settled
        if isinstance(entry.outcome, Refusal)
    ]


def next_shards(claim: Claim, job: JobView, settled: Sequence[Settled], max_attempts: int) -> list[dict[str, Any]]:
    """The shards of the following stage over this shard's results, cut by that stage's own estimate of work."""
    if job.is_last(claim.stage):
        return []
    following = claim.stage + 1
    stage = build(job.spec, following)
    work = []
    for entry in settled:
        if isinstance(entry.outcome, Result):
            characters = _characters(entry.document, entry.outcome)
            work.append((entry.document.seq, characters, stage.work_seconds(characters)))
    ranges = cut(work, job.spec.stages[following].seconds_per_shard)
    return [shard_row(job.id, following, start, stop, max_attempts) for start, stop in ranges]


def _characters(document: Document, result: Result) -> int:
    """Of what the following stage reads; of slots those that as many tokens have."""
    if "slots" in result.fields:
        return round(len(document.prompt) * result.tokens_out / max(1, result.tokens_in))
    return len(result.fields.get("compressed") or document.prompt)
