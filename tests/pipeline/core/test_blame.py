"""Whose fault a failure is: documents are only blamed for what they did, and only by who still holds their shard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from by_hand import Silent, do, take
from fleet import job_spec, write_corpus
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import InterfaceError, OperationalError

from pipeline.copying import Copy
from pipeline.lease import Lease
from pipeline.producer import submit
from pipeline.stages import Outcome, Run, Stopped
from pipeline.storage import shards
from pipeline.storage.jobs import find_job
from pipeline.storage.reaping import expire
from pipeline.storage.shards import Claim
from pipeline.work import Overdue
from schemas.document import Document
from schemas.tables import Rejection, Shard


@pytest.fixture
def job(engine: Engine, tmp_path: Path) -> str:
    """Eight documents in shards of two."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", 8)
    return submit(engine, job_spec(corpus, tmp_path / "out", {"kind": "copy"}), Silent()).job_id


def attempt(engine: Engine, job: str, number: int) -> Claim:
    """The claim of this number at the first shard."""
    for _ in range(number):
        expire(engine, ["test"])
        claim = take(engine, job, "0-0-2")
    assert claim.attempt == number
    return claim


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(self: Copy, documents: Sequence[Document], run: Run) -> list[Outcome]:
        raise error

    monkeypatch.setattr(Copy, "run", run)


def rejections(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(Rejection)) or 0)


@pytest.mark.parametrize(
    "error", [Overdue("too long"), OperationalError("select", None, Exception("away"))], ids=["overdue", "database"]
)
def test_no_document_is_dead_for_what_is_not_its_fault(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fail_with(monkeypatch, error)
    assert do(engine, attempt(engine, job, 2)) == "failed"
    assert rejections(engine) == 0


def test_a_strike_while_a_model_is_loaded_is_no_fault_of_the_model(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """It passed for a model that cannot be loaded, and stopped the whole job."""

    def stuck(*args: object, **more: object) -> None:
        raise Overdue("too long")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", stuck)
    corpus, target = write_corpus(tmp_path / "c.jsonl", 1), {"model": str(tiny_model)}
    spec = job_spec(corpus, tmp_path / "out", {"kind": "generate", "backend": "local"}, target=target)
    job = submit(engine, spec, Silent()).job_id
    assert do(engine, take(engine, job, "0-0-1")) == "failed"
    assert find_job(engine, job).state == "running"


@pytest.mark.parametrize("error", [Stopped(), OSError(28, "No space left on device")], ids=["stopped", "disk"])
def test_a_connection_that_breaks_at_the_hand_back_charges_nothing(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_with(monkeypatch, error)
    release, calls = shards.release, list[int]()

    def shaky(*args: object, **more: object) -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise InterfaceError("update", None, Exception("connection already closed"))
        return release(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "release", shaky)
    do(engine, attempt(engine, job, 1))
    with engine.connect() as connection:
        row = connection.execute(select(Shard).where(Shard.job_id == job, Shard.id == "0-0-2")).one()
    assert (row.state, row.attempt_limit - row.attempt) == ("pending", 3)


def test_an_error_text_that_no_database_stores_is_still_told(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, ValueError("half a \ud800 and a \0"))  # neither of which PostgreSQL stores
    assert do(engine, attempt(engine, job, 1)) == "failed"
    with engine.connect() as connection:
        assert "half a" in str(connection.scalar(select(Shard.error).where(Shard.id == "0-0-2")))


def test_other_weights_stop_the_job_before_they_pass_for_its_own(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Copy, "identity", lambda self: "the model's folder was exchanged")
    assert do(engine, attempt(engine, job, 1)) == "halted"
    stopped = find_job(engine, job)
    assert stopped.state == "stopped"
    assert "not what the job was submitted with" in stopped.error


def test_who_lost_the_shard_cannot_stop_the_job(engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(28, "No space left on device"))
    stale = attempt(engine, job, 1)
    expire(engine, ["test"])
    held = take(engine, job, "0-0-2", "other")
    do(engine, stale)
    assert find_job(engine, job).state == "running"
    assert do(engine, held) == "halted"
    assert find_job(engine, job).state == "stopped"


def test_a_part_that_cannot_be_removed_does_not_keep_the_shard(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("the bucket does not answer")

    monkeypatch.setattr("pipeline.work.delete", refuse)
    stale = attempt(engine, job, 1)
    expire(engine, ["test"])
    take(engine, job, "0-0-2", "other")
    assert do(engine, stale) == "lost"


def test_a_lease_loses_no_count_of_several_threads(engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = [0]

    def count() -> None:  # gives other threads a turn between reading and writing
        before = moved[0]
        time.sleep(0)
        moved[0] = before + 1

    lease = Lease(engine, attempt(engine, job, 1), lease_seconds=60.0, renew_seconds=15.0, moved=count)
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda _: lease.progress(1, 2), range(2000)):
            pass
    assert lease.done == (2000, 4000)
    assert moved == [2000]


def test_a_lease_outlives_any_error_of_the_database(engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = attempt(engine, job, 1)
    renewals: list[int] = []
    renew = shards.renew

    def shaky(*args: object, **more: object) -> bool:
        renewals.append(1)
        if len(renewals) == 1:
            raise InterfaceError("update", None, Exception("connection already closed"))
        return renew(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "renew", shaky)
    with Lease(engine, claim, lease_seconds=60.0, renew_seconds=0.02) as lease:
        while len(renewals) < 3:
            assert lease._thread.is_alive()
        assert not lease.stopping()
