"""Night after night over the same corpus: taking over must not cost more with every earlier job that has it all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from pipeline.lease import Lease
from pipeline.models import ModelPool
from pipeline.producer import submit
from pipeline.storage import shards
from pipeline.storage.jobs import find_job
from pipeline.storage.parts import read_part
from pipeline.storage.reaping import open_publications, unrung
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from pipeline.work import work_on
from schemas.job import JobSpec
from schemas.tables import Usage

DOCUMENTS = 12


class Silent:
    """These tests claim by themselves."""

    def ring(self, job_id: str, shard_id: str, kind: str, priority: str) -> None:
        del job_id, shard_id, kind, priority


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = open_engine(database_url)
    migrate(made)
    yield made
    made.dispose()


def night(engine: Engine, folder: Path, number: int) -> str:
    """The same corpus and one new document a night, worked through; returns the job."""
    corpus = folder / f"corpus-{number}.jsonl"
    rows = [{"id": f"d{i}", "text": f"text {i}"} for i in range(DOCUMENTS + number)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {"input": {"path": str(corpus)}, "output": {"path": str(folder / "out")}, "stages": [{"kind": "copy"}]}
    job = submit(engine, JobSpec.model_validate(raw), Silent()).job_id
    while True:
        open_publications(engine, 3)
        dues = unrung(engine, all_pending=True)
        if not dues:
            return job
        for due in dues:
            claim = shards.claim(engine, due.job_id, due.shard_id, "test", 60.0)
            assert claim is not None
            with Lease(engine, claim, lease_seconds=60.0, renew_seconds=15.0) as lease:
                assert work_on(engine, claim, ModelPool(), lease, 3) == "done"


def fresh(engine: Engine, job: str) -> int:
    query = select(func.count()).where(Usage.job_id == job, Usage.reused_from.is_(None))
    with engine.connect() as connection:
        return int(connection.scalar(query) or 0)


def test_a_night_reads_only_last_nights_parts(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = read_part

    def counted(fs: Any, path: str, columns: Any = None) -> Any:
        read.append(path)
        return real(fs, path, columns)

    jobs = [night(engine, tmp_path, number) for number in range(5)]
    monkeypatch.setattr("pipeline.reuse.read_part", counted)
    last = night(engine, tmp_path, 5)
    assert fresh(engine, last) == 1
    assert read
    assert {Path(path).parents[1] for path in read} == {Path(find_job(engine, jobs[-1]).output)}


def test_what_last_night_lost_comes_from_the_night_before(engine: Engine, tmp_path: Path) -> None:
    first, second = night(engine, tmp_path, 0), night(engine, tmp_path, 1)
    for part in (Path(find_job(engine, second).output) / "_parts").iterdir():
        part.unlink()
    third = night(engine, tmp_path, 2)
    with engine.connect() as connection:
        sources = connection.scalars(select(Usage.reused_from).where(Usage.job_id == third)).all()
    assert sources.count(first) == DOCUMENTS
    assert fresh(engine, third) == 2
