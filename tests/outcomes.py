"""What must hold of a finished job, whatever was killed on its way: nothing lost, nothing twice, no leftovers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fleet import Fleet, parquet_files
from sqlalchemy import func, select

from schemas.tables import DocumentRow, Part, Rejection, Usage


def _rows(fleet: Fleet, table: Any, job_id: str, *where: Any) -> list[Any]:
    with fleet.engine.connect() as connection:
        return list(connection.execute(select(table).where(table.job_id == job_id, *where)))


def assert_each_once(fleet: Fleet, job_id: str, ids: list[str]) -> None:
    """A job that is done has each document of ``ids``, in this order, once: in SQL, in the manifest and in data/."""
    job = fleet.job(job_id)
    assert (job.state, job.documents, job.error) == ("done", len(ids), None)
    assert {shard.state for shard in fleet.shards(job_id)} <= {"done", "split"}
    documents = sorted(_rows(fleet, DocumentRow, job_id), key=lambda row: row.seq)
    assert [(row.seq, row.doc_id, row.status) for row in documents] == [(n, i, "done") for n, i in enumerate(ids)]
    assert not _rows(fleet, Rejection, job_id)
    root = Path(job.output)
    for stage in range(len(job.spec["stages"])):
        assert_manifest(fleet, job_id, stage, list(range(len(ids))))
    assert sorted(zip(*columns(root / "data", "seq", "doc_id"), strict=True)) == list(enumerate(ids))
    assert_no_leftovers(fleet, job_id)


def assert_manifest(fleet: Fleet, job_id: str, stage: int, seqs: list[int]) -> None:
    """The stage's parts hold each of ``seqs`` once, and every usage row names the row of its own document."""
    root = Path(fleet.job(job_id).output)
    parts = {row.path: pq.read_table(root / row.path) for row in _rows(fleet, Part, job_id, Part.stage == stage)}
    for row in _rows(fleet, Part, job_id, Part.stage == stage):
        table = parts[row.path]
        assert table.num_rows == row.rows
        assert all(row.start <= seq < row.stop for seq in table["seq"].to_pylist())
        assert (root / row.path).stat().st_size == row.bytes
    assert sorted(seq for table in parts.values() for seq in table["seq"].to_pylist()) == seqs
    usage = _rows(fleet, Usage, job_id, Usage.stage == stage)
    assert sorted(row.seq for row in usage) == seqs
    found = {path: table.select(["seq", "content_hash"]).to_pylist() for path, table in parts.items()}
    assert all(found[u.part][u.row] == {"seq": u.seq, "content_hash": u.content_hash} for u in usage)


def assert_no_leftovers(fleet: Fleet, job_id: str) -> None:
    """Nothing below the job's folder but what the manifest, data/ and the lists of a job account for."""
    root = Path(fleet.job(job_id).output)
    known = {row.path for row in _rows(fleet, Part, job_id)}
    there = {str(path.relative_to(root)) for folder in ("_parts", "_input") for path in (root / folder).iterdir()}
    assert there == known
    hidden = [path.name for path in (*root.iterdir(), *(root / "data").iterdir()) if path.name.startswith(".")]
    assert not hidden


def columns(folder: Path, *names: str) -> Iterator[list[Any]]:
    """Columns of a plain glob of the folder's Parquet files."""
    table = pa.concat_tables([pq.read_table(path, columns=list(names)) for path in parquet_files(folder)])
    for name in names:
        yield table[name].to_pylist()


def fingerprint(fleet: Fleet, job_id: str) -> tuple[Any, ...]:
    """What a late message must not change: rows of SQL, and every byte of data/."""
    root = Path(fleet.job(job_id).output)
    shards = sorted((s.id, s.state, s.attempt) for s in fleet.shards(job_id))
    tables = [sorted(map(tuple, _rows(fleet, table, job_id))) for table in (DocumentRow, Part)]
    return (
        shards,
        tables,
        sorted(map(str, _rows(fleet, Usage, job_id))),
        [p.read_bytes() for p in parquet_files(root / "data")],
    )


def total(fleet: Fleet, column: Any, *where: Any) -> int:
    """The sum of a column."""
    with fleet.engine.connect() as connection:
        return int(connection.execute(select(func.sum(column)).where(*where)).scalar_one() or 0)
