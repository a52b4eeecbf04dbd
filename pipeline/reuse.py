"""Nights build on nights: results that an earlier job already has are taken over, never computed or paid for again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, func, select

from pipeline.stages import Result
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import read_part
from pipeline.storage.sql import reading
from schemas.document import Document
from schemas.records import STAGE_FIELDS
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
    found = _candidates(engine, job_id, stage_hash, list({document.content_hash for document in documents}))
    by_hash: dict[str, tuple[Result, str]] = {}
    for rank in sorted(found):
        wanted: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
        for usage in found[rank]:
            if usage.content_hash not in by_hash:
                wanted[usage.job_id, usage.output, usage.part].append(usage)
        for (other, output, part), usages in wanted.items():
            table = _read(other, output, part, kind)
            if table is not None:
                made = {usage.content_hash: (_result(table, usage), usage.reused_from or other) for usage in usages}
                by_hash |= made
    return {d.seq: by_hash[d.content_hash] for d in documents if d.content_hash in by_hash}


def _read(other: str, output: str, part: str, kind: str) -> pa.Table | None:
    try:
        fs, root = resolve_path(output)
        return read_part(fs, f"{root}/{part}", columns=STAGE_FIELDS[kind].names)
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("results of job %s cannot be taken over: %s", other, error)
        return None


def _candidates(engine: Engine, job_id: str, stage_hash: str, hashes: list[str]) -> dict[int, list[Any]]:
    """Rank -> the usage rows of that rank, at most one for each content hash; the newest job's have rank 1."""
    newest = func.row_number().over(
        partition_by=Usage.content_hash, order_by=(Job.created_at.desc(), Usage.job_id, Usage.seq)
    )
    columns = [Usage.content_hash, Usage.part, Usage.row, Usage.tokens_in, Usage.tokens_out, Usage.tokens_asked]
    columns.append(Usage.reused_from)
    found: dict[int, list[Any]] = defaultdict(list)
    with reading(engine) as connection:
        for first in range(0, len(hashes), LOOKUP):
            ranked = (
                select(Usage.job_id, Job.output, *columns, newest.label("rank"))
                .join(Job, Job.id == Usage.job_id)
                .where(Usage.stage_hash == stage_hash, Usage.content_hash.in_(hashes[first : first + LOOKUP]))
                .where(Usage.job_id != job_id)
                .subquery()
            )
            for row in connection.execute(select(ranked).where(ranked.c.rank <= CANDIDATES)):
                found[row.rank].append(row)
    return found


def _result(table: pa.Table, usage: Any) -> Result:
    """The stored result as it would have come from the stage, but for free: no seconds, and a known cost of 0.

    Its columns stay as they are: what they say of seconds and money is what it took to make the row.
    """
    (fields,) = table.slice(usage.row, 1).to_pylist()
    return Result(
        fields,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        tokens_asked=usage.tokens_asked,
        cost_microusd=0,
    )
