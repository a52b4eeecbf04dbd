"""What target models answered in jobs of this pipeline -> one file of (prompt, answer) pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine, Row, select

from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import read_part, write_tables
from pipeline.storage.sql import reading
from schemas.job import digest
from schemas.tables import Job, Part

PAIRS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # NUMBER/ID: the target's place in the file, the prompt's own id
        pa.field("text", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Where the pairs lie, how many there are, and how many documents have no answer."""

    path: str
    pairs: int
    unanswered: int


def gather(engine: Engine, job_ids: Sequence[str], output: str, name: str, end: str = "") -> Gathered:
    """Write all answers that are committed into one Parquet file in ``output``; the same answers, the same file.
    Behind an answer that the target ended stands ``end``; its prompt is what the target was sent, compressed or not.

    From the parts that SQL names, not from ``data/``: a job that its budget stopped has published nothing, and what it
    paid for is there all the same. Raises ``OSError`` where a part is gone.
    """
    jobs = [_job(engine, job_id) for job_id in job_ids]
    found = [(job, _parts(engine, job)) for job in jobs]
    which = digest([[job.id, [part.path for part in parts]] for job, parts in found] + ([end] if end else []))
    fs, root = resolve_path(output)
    folder = f"{name}-pairs-{which[:12]}"
    path = f"{root}/{folder}/pairs.parquet"
    if not fs.get_file_info(path).is_file:
        write_tables(fs, path, _tables(found, end), PAIRS)
    pairs = sum(part.rows for _, parts in found for part in parts)
    return Gathered(f"{output.rstrip('/')}/{folder}/pairs.parquet", pairs, sum(job.documents for job in jobs) - pairs)


def _job(engine: Engine, job_id: str) -> Row[Any]:
    with reading(engine) as connection:
        return connection.execute(select(Job).where(Job.id == job_id)).one()


def _parts(engine: Engine, job: Row[Any]) -> list[Row[Any]]:
    last = len(job.spec["stages"]) - 1
    query = select(Part).where(Part.job_id == job.id, Part.stage == last).order_by(Part.start, Part.path)
    with reading(engine) as connection:
        return list(connection.execute(query))


def _tables(found: Sequence[tuple[Row[Any], list[Row[Any]]]], end: str) -> Iterator[pa.Table]:
    for number, (job, parts) in enumerate(found, 1):
        fs, root = resolve_path(job.output)
        prompt = "compressed" if any(stage["kind"] == "compress" for stage in job.spec["stages"]) else "text"
        for part in parts:
            table = read_part(
                fs, f"{root}/{part.path}", ["doc_id", prompt, "generated", "finish_reason", "generate_model"]
            )
            ids = pc.binary_join_element_wise(str(number), table["doc_id"], "/")
            ends = pc.if_else(pc.equal(table["finish_reason"], "stop"), end, "")
            answers = pc.binary_join_element_wise(table["generated"], ends, "")
            yield pa.Table.from_arrays([ids, table[prompt], answers, table["generate_model"]], schema=PAIRS)
