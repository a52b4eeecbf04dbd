"""Contexts that were put into slots before: who asks something else about them takes their slots from there.

``reuse`` takes over whole prompts; what is asked at day about a context that was encoded at night is another prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, and_, func, select

from pipeline.reuse import CANDIDATES, LOOKUP, read_results
from pipeline.storage.sql import reading
from schemas.document import context_hash
from schemas.tables import ContextRow, Job

if TYPE_CHECKING:
    from pipeline.memory.packing import Made


def known_contexts(engine: Engine, stage_hash: str, contexts: Sequence[str]) -> Mapping[str, Made]:
    """Slots of those of ``contexts`` that a job of this database, this one or an earlier one, has made by the same
    stage; what cannot be read any more counts as not there."""
    texts = {context_hash(text): text for text in contexts}
    found: dict[str, Made] = {}
    left = list(texts)
    for rank in range(1, CANDIDATES + 1):
        parts: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
        for one in _candidates(engine, stage_hash, left, rank):
            parts[one.job_id, one.output, one.part].append(one)
        for (job, output, part), wanted in parts.items():
            found |= {texts[key]: made for key, made in _of(job, output, part, wanted).items()}
        left = [one.context_hash for some in parts.values() for one in some if texts[one.context_hash] not in found]
    return found


def _candidates(engine: Engine, stage_hash: str, hashes: Sequence[str], rank: int) -> list[Any]:
    """Where the slots of each lie: in a part of the newest job (``rank`` 1) that has them, the second newest, and so
    on. Ranked are jobs, as in ``reuse``: many parts of one must not hide an older job that has them, too."""
    newest = func.row_number().over(partition_by=ContextRow.context_hash, order_by=(Job.created_at.desc(), Job.id))
    one_a_job = (
        select(Job.id, Job.output, func.min(ContextRow.part).label("part"), newest.label("rank"))
        .join(Job, Job.id == ContextRow.job_id)
        .where(ContextRow.stage_hash == stage_hash)
        .group_by(ContextRow.context_hash, Job.id)
    )
    columns = ContextRow.job_id, ContextRow.part, ContextRow.context_hash, ContextRow.row, ContextRow.place
    found: list[Any] = []
    with reading(engine) as connection:
        for first in range(0, len(hashes), LOOKUP):
            some = ContextRow.context_hash.in_(hashes[first : first + LOOKUP])
            jobs = one_a_job.add_columns(ContextRow.context_hash).where(some).subquery().c
            its = and_(
                ContextRow.job_id == jobs.id,
                ContextRow.part == jobs.part,
                ContextRow.context_hash == jobs.context_hash,
            )
            found += connection.execute(select(jobs.output, *columns).where(its, jobs.rank == rank))
    return found


def _of(job: str, output: str, part: str, wanted: Sequence[Any]) -> dict[str, Made]:
    """By the hash of the context."""
    from pipeline.memory.store import SlotFiles
    from pipeline.memory.taking import contexts_of

    found: dict[str, Made] = {}
    rows, files = read_results(job, output, part, "encode") or [], SlotFiles(output)
    for number in sorted({one.row for one in wanted if one.row < len(rows)}):
        if (packed := files.taken(rows[number], job)) is None:
            continue
        made = contexts_of(rows[number], packed)
        here = {one.context_hash: made[one.place] for one in wanted if one.row == number}
        found |= {key: one._replace(packed=one.packed.alone()) for key, one in here.items()}
    return found
