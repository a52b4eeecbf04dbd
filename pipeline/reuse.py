"""Nights build on nights: results that an earlier job already has are taken over, never computed or paid for again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, select

from pipeline.stages import Result
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import read_part
from pipeline.storage.sql import reading
from schemas.document import Document
from schemas.records import STAGE_FIELDS
from schemas.tables import Job, Usage

log = logging.getLogger(__name__)

LOOKUP = 1_000  # content hashes per query: well under every database's limit on parameters


def taken_over(
    engine: Engine, job_id: str, kind: str, stage_hash: str, documents: Sequence[Document]
) -> dict[int, tuple[Result, str]]:
    """What earlier jobs already have for these documents: seq -> (result, the job it comes from).

    A result whose part has been deleted since counts as not there: it is computed again.
    """
    found = _rows_by_part(engine, job_id, stage_hash, [document.content_hash for document in documents])
    by_hash: dict[str, tuple[Result, str]] = {}
    for (other, output, part), usages in found.items():
        try:
            fs, root = resolve_path(output)
            table = read_part(fs, f"{root}/{part}", columns=STAGE_FIELDS[kind].names)
        except (OSError, pa.ArrowInvalid) as error:
            log.warning("results of job %s cannot be taken over (%s): working on them again", other, error)
            continue
        for usage in usages:
            by_hash[usage.content_hash] = (_result(table, usage), other)
    return {d.seq: by_hash[d.content_hash] for d in documents if d.content_hash in by_hash}


def _rows_by_part(
    engine: Engine, job_id: str, stage_hash: str, hashes: list[str]
) -> dict[tuple[str, str, str], list[Any]]:
    found: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    with reading(engine) as connection:
        for first in range(0, len(hashes), LOOKUP):
            query = (
                select(Usage, Job.output)
                .join(Job, Job.id == Usage.job_id)
                .where(Usage.stage_hash == stage_hash, Usage.content_hash.in_(hashes[first : first + LOOKUP]))
                .where(Usage.job_id != job_id)
            )
            for row in connection.execute(query):
                found[row.job_id, row.output, row.part].append(row)
    return found


def _result(table: pa.Table, usage: Any) -> Result:
    """The stored result as it would have come from the stage, but for free: no seconds, no money."""
    (fields,) = table.slice(usage.row, 1).to_pylist()
    return Result(fields, tokens_in=usage.tokens_in, tokens_out=usage.tokens_out, tokens_asked=usage.tokens_asked)
