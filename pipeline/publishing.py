"""The last shard of a job: committed parts become ``data/``, the refused are listed beside it, leftovers go."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from sqlalchemy import Engine, select

from pipeline.evaluation.publishing import evaluate_job
from pipeline.shard_rows import INPUT_STAGE, JobView
from pipeline.stages import Halt
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import delete, list_orphans, slots_path, table_from_rows, write_part, write_tables
from pipeline.storage.publication import publish
from pipeline.storage.requests import forget_responses
from pipeline.storage.shards import Claim, Commit
from pipeline.storage.sql import db_now, reading
from schemas.records import REJECTION, part_schema
from schemas.tables import Part, Rejection

REJECTIONS = "rejections.parquet"


def publish_job(engine: Engine, claim: Claim, job: JobView, go_on: Callable[[], None]) -> Commit:
    """Write ``data/`` and ``rejections.parquet`` from what SQL says is committed. Done twice, it leaves the same.

    Calls ``go_on`` before each file, and raises what that raises; ``Halt`` where a part is gone.
    """
    fs, root = resolve_path(job.output)
    began = time.time()
    with reading(engine) as connection:
        rows = connection.execute(select(Part).where(Part.job_id == job.id).order_by(Part.start)).all()
    last = [f"{root}/{row.path}" for row in rows if row.stage == len(job.spec.stages) - 1]
    known = {row.path.rpartition("/")[2] for row in rows} | {slots_path(row.path) for row in rows}
    try:
        files = last or [_write_empty(fs, root, job)]
        publish(fs, root, files, claim.attempt, go_on)
    except FileNotFoundError as error:
        where = "bring it back and resume the job, or run it anew with another output folder and database"
        raise Halt(f"a part of the results is gone: {where} ({error})") from error
    _write_rejections(engine, fs, root, job)
    evaluations = evaluate_job(engine, job.id, job.spec, fs, root, files, go_on)
    # Only what is older than our look at the manifest: this publication may have lost its fence long ago, and
    # retry-dead may have brought parts since that it knows nothing of.
    for path in list_orphans(fs, root, known, older_than_seconds=time.time() - began):
        delete(fs, path)
    forget_responses(engine, job.id)
    done = {"state": "done", "stop_code": None, "error": None, "finished_at": db_now()}
    return Commit(job=done, evaluations=evaluations)


def _write_empty(fs: pafs.FileSystem, root: str, job: JobView) -> str:
    """A part without rows, so that ``data/`` has its columns even where every document was refused."""
    kinds = [spec.kind for spec in job.spec.stages]
    schema = part_schema(kinds, {"job": job.id, "config_hash": job.stage_hashes[-1]})
    path = f"{root}/_parts/empty-{uuid.uuid4().hex[:8]}.parquet"
    write_part(fs, path, schema.empty_table(), schema)
    return path


def _write_rejections(engine: Engine, fs: pafs.FileSystem, root: str, job: JobView) -> None:
    write_tables(fs, f"{root}/{REJECTIONS}", _rejections(engine, job), REJECTION)


def _rejections(engine: Engine, job: JobView) -> Iterator[pa.Table]:
    names = {index: spec.kind for index, spec in enumerate(job.spec.stages)} | {INPUT_STAGE: "input"}
    query = select(Rejection).where(Rejection.job_id == job.id).order_by(Rejection.stage, Rejection.source)
    with reading(engine) as connection:
        for batch in connection.execution_options(yield_per=10_000).execute(query).partitions():
            yield table_from_rows([_rejection(row, names) for row in batch], REJECTION)


def _rejection(row: Any, names: dict[int, str]) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in REJECTION.names}, "stage": names[row.stage]}
