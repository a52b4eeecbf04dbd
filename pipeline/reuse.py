"""Nights build on nights: results that an earlier job already has are taken over, never computed or paid for again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, and_, func, select

from pipeline.stages import Result
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import read_part
from pipeline.storage.sql import reading
from schemas.document import Document
from schemas.records import ANSWER_DECIDES, STAGE_FIELDS
from schemas.tables import Job, Usage

log = logging.getLogger(__name__)

LOOKUP = 1_000  # content hashes per query: well under every database's limit on parameters
CANDIDATES = 3  # jobs tried for a result; after years of nights hundreds have it, and each would cost a file to read


def taken_over(
    engine: Engine, job_id: str, kind: str, stage_hash: str, documents: Sequence[Document]
) -> dict[int, tuple[Result, str]]:
    """What earlier jobs already have for these documents: seq -> (result, the job that made it).

    That is the job which worked and paid, however many nights have handed its result on since. A result whose part
    has been deleted since counts as not there: it is computed again.
    """
    if kind in ANSWER_DECIDES:
        return {}
    by_hash: dict[str, tuple[Result, str]] = {}
    left = list({document.content_hash for document in documents})
    for rank in range(1, CANDIDATES + 1):
        wanted: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
        for usage in _candidates(engine, job_id, stage_hash, left, rank):
            wanted[usage.job_id, usage.output, usage.part].append(usage)
        left = []  # nobody asks twice for what no job has: only for what one has and cannot be read
        for (other, output, part), usages in wanted.items():
            rows = read_results(other, output, part, kind)
            if rows is None:
                left += [usage.content_hash for usage in usages]
            else:
                made = {u.content_hash: (_result(rows[u.row], u), u.reused_from or other) for u in usages}
                whole = _with_slots(other, output, made)
                by_hash |= whole
                left += list(made.keys() - whole.keys())
    return {d.seq: by_hash[d.content_hash] for d in documents if d.content_hash in by_hash}


def read_results(other: str, output: str, part: str, kind: str) -> list[dict[str, Any]] | None:
    """The columns of a stage in a part of another job, row by row; None, and a warning, where it cannot be read."""
    try:
        fs, root = resolve_path(output)
        names = STAGE_FIELDS[kind].names
        rows = read_part(fs, f"{root}/{part}", columns=names).to_pylist()
        # get: an older part may lack a column that was added since.
        return [{name: row.get(name) for name in names} for row in rows]
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("results of job %s cannot be taken over: %s", other, error)
        return None


def _with_slots(other: str, output: str, made: dict[str, tuple[Result, str]]) -> dict[str, tuple[Result, str]]:
    """The results with the slots that they name, less those whose slots cannot be read."""
    if not any(result.fields.get("slots") for result, _ in made.values()):
        return made
    from pipeline.memory.store import SlotFiles

    files, whole = SlotFiles(output), {}
    for key, (result, maker) in made.items():
        slots = files.taken(result.fields, other) if result.fields["slots"] else None
        if slots is not None or not result.fields["slots"]:
            whole[key] = replace(result, slots=slots), maker
    return whole


def _candidates(engine: Engine, job_id: str, stage_hash: str, hashes: list[str], rank: int) -> list[Any]:
    """The usage rows of each content hash's newest job (``rank`` 1), its second newest (2) and so on: one for each.

    Ranked are jobs: a text that stands under many ids in one job must not hide an older job that has it too.
    """
    newest = func.row_number().over(partition_by=Usage.content_hash, order_by=(Job.created_at.desc(), Job.id))
    one_a_job = (
        select(Job.id, Job.output, Usage.stage, func.min(Usage.seq).label("seq"), newest.label("rank"))
        .join(Job, Job.id == Usage.job_id)
        .where(Usage.stage_hash == stage_hash, Usage.job_id != job_id)
        .group_by(Usage.content_hash, Job.id, Usage.stage)
    )
    columns = [Usage.job_id, Usage.content_hash, Usage.part, Usage.row, Usage.tokens_in, Usage.tokens_out]
    columns += [Usage.tokens_asked, Usage.reused_from]
    found: list[Any] = []
    with reading(engine) as connection:
        for first in range(0, len(hashes), LOOKUP):
            jobs = one_a_job.where(Usage.content_hash.in_(hashes[first : first + LOOKUP])).subquery().c
            its = and_(Usage.job_id == jobs.id, Usage.stage == jobs.stage, Usage.seq == jobs.seq)
            query = select(jobs.output, *columns).where(its, jobs.rank == rank)
            found += connection.execute(query)
    return found


def _result(fields: dict[str, Any], usage: Any) -> Result:
    """The stored result as it would have come from the stage, but for free: no seconds, and a known cost of 0.

    Its columns stay as they are: what they say of seconds and money is what it took to make the row.
    """
    return Result(
        fields,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        tokens_asked=usage.tokens_asked,
        cost_microusd=0,
    )
