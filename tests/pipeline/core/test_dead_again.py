"""Dead documents tried again: when that may be asked for, and that the fence holds through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, select, update

from pipeline.lease import Lease
from pipeline.models import ModelPool
from pipeline.producer import submit
from pipeline.storage import shards
from pipeline.storage.jobs import JobStateError, cancel_job, find_job, resume_job, retry_dead
from pipeline.storage.reaping import bury, expire, open_publications, unrung
from pipeline.storage.schema import migrate
from pipeline.storage.shards import PUBLISH, Claim, Commit
from pipeline.storage.sql import open_engine
from pipeline.work import work_on
from schemas.job import JobSpec
from schemas.tables import DocumentRow, Job, Shard


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


@pytest.fixture
def job(engine: Engine, tmp_path: Path) -> str:
    """Four documents, a shard each."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"d{i}", "text": f"text {i}"}) + "\n" for i in range(4)))
    raw = {"input": {"path": str(corpus)}, "output": {"path": str(tmp_path / "out")}, "stages": [{"kind": "copy"}]}
    return submit(engine, JobSpec.model_validate(raw), Silent()).job_id


def take(engine: Engine, job: str, shard: str) -> Claim:
    claim = shards.claim(engine, job, shard, "test", 60.0)
    assert claim is not None
    return claim


def do(engine: Engine, claim: Claim) -> None:
    with Lease(engine, claim, lease_seconds=60.0, renew_seconds=15.0) as lease:
        assert work_on(engine, claim, ModelPool(), lease, 3) == "done"


def kill(engine: Engine, job: str, shard: str) -> None:
    """The shard's worker dies at every attempt."""
    for _ in range(3):
        take(engine, job, shard)
        expire(engine, ["test"])
    assert bury(engine, 3) == 1


def work_through(engine: Engine) -> None:
    while True:
        open_publications(engine, 3)
        dues = unrung(engine, all_pending=True)
        if not dues:
            return
        for due in dues:
            do(engine, take(engine, due.job_id, due.shard_id))


def test_dead_documents_come_into_data_at_the_second_try(engine: Engine, job: str) -> None:
    kill(engine, job, "0-1-2")
    work_through(engine)
    assert retry_dead(engine, job, 3) == 1
    work_through(engine)
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
        do(engine, take(engine, job, f"0-{number}-{number + 1}"))
    open_publications(engine, 3)
    stale = take(engine, job, PUBLISH)
    expire(engine, ["test"])
    do(engine, take(engine, job, PUBLISH))
    assert retry_dead(engine, job, 3) == 1
    assert open_publications(engine, 3) == 0, "one shard is open again"
    do(engine, take(engine, job, "0-1-2"))
    open_publications(engine, 3)
    take(engine, job, PUBLISH)
    assert not shards.finish(engine, stale, Commit(job={"state": "done"}))
    assert find_job(engine, job).state == "running"
    with engine.connect() as connection:
        assert connection.scalar(select(Shard.attempt).where(Shard.id == PUBLISH)) == 3
