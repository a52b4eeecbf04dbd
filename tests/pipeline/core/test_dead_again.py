"""Dead documents tried again: when that may be asked for, and that the fence holds through it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from by_hand import Silent, do, take, work_through
from fleet import job_spec, write_corpus
from sqlalchemy import Engine, select, update

from pipeline.producer import submit
from pipeline.storage import shards
from pipeline.storage.jobs import JobStateError, cancel_job, find_job, resume_job, retry_dead
from pipeline.storage.reaping import bury, expire, open_publications
from pipeline.storage.shards import PUBLISH, Commit
from schemas.tables import DocumentRow, Job, Shard


@pytest.fixture
def job(engine: Engine, tmp_path: Path) -> str:
    """Four documents, a shard each."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", 4)
    return submit(engine, job_spec(corpus, tmp_path / "out", {"kind": "copy"}), Silent()).job_id


def kill(engine: Engine, job: str, shard: str) -> None:
    """The shard's worker dies at every attempt."""
    for _ in range(3):
        take(engine, job, shard)
        expire(engine, ["test"])
    assert bury(engine, 3) == 1


def test_dead_documents_come_into_data_at_the_second_try(engine: Engine, job: str) -> None:
    kill(engine, job, "0-1-2")
    work_through(engine, job)
    assert retry_dead(engine, job, 3) == 1
    work_through(engine, job)
    row = find_job(engine, job)
    assert row.state == "done"
    assert pq.read_table(Path(row.output) / "data")["seq"].to_pylist() == [0, 1, 2, 3]
    with engine.connect() as connection:
        assert set(connection.scalars(select(DocumentRow.status))) == {"done"}
    assert retry_dead(engine, job, 3) == 0
    assert find_job(engine, job).state == "done"


def test_a_job_that_is_not_done_keeps_its_dead(engine: Engine, job: str) -> None:
    """A later stage's open shard would read the revived row too; a cut-off submission would be published as whole."""
    kill(engine, job, "0-1-2")
    with pytest.raises(JobStateError, match="is running"):
        retry_dead(engine, job, 3)
    cancel_job(engine, job)
    with pytest.raises(JobStateError, match="is cancelled"):
        retry_dead(engine, job, 3)
    with engine.begin() as connection:
        connection.execute(update(Job).values(submitted_at=None))
    resume_job(engine, job)
    with pytest.raises(JobStateError, match="is submitting"):
        retry_dead(engine, job, 3)
    assert find_job(engine, job).state == "submitting"


def test_a_publisher_of_the_first_time_cannot_commit_the_second(engine: Engine, job: str) -> None:
    kill(engine, job, "0-1-2")
    for number in (0, 2, 3):
        assert do(engine, take(engine, job, f"0-{number}-{number + 1}")) == "done"
    open_publications(engine, 3)
    stale = take(engine, job, PUBLISH)
    expire(engine, ["test"])
    assert do(engine, take(engine, job, PUBLISH)) == "done"
    assert retry_dead(engine, job, 3) == 1
    assert open_publications(engine, 3) == 0, "one shard is open again"
    assert do(engine, take(engine, job, "0-1-2")) == "done"
    open_publications(engine, 3)
    take(engine, job, PUBLISH)
    assert not shards.finish(engine, stale, Commit(job={"state": "done"}))
    assert find_job(engine, job).state == "running"
    with engine.connect() as connection:
        assert connection.scalar(select(Shard.attempt).where(Shard.id == PUBLISH)) == 3
