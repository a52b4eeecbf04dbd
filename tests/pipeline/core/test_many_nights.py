"""Night after night over the same corpus: taking over must not cost more with every earlier job that has it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from by_hand import Silent, work_through
from fleet import job_spec, write_corpus
from sqlalchemy import Engine, func, select

from pipeline.producer import submit
from pipeline.storage.jobs import find_job
from pipeline.storage.parts import read_part
from schemas.tables import Usage

DOCUMENTS = 12


def night(engine: Engine, folder: Path, number: int) -> str:
    """The same corpus and one new document a night, worked through; returns the job."""
    corpus = write_corpus(folder / f"corpus-{number}.jsonl", DOCUMENTS + number)
    job = submit(engine, job_spec(corpus, folder / "out", {"kind": "copy"}), Silent()).job_id
    work_through(engine, job)
    return job


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
