"""Servers that go away, disks that fill, documents that kill: the job finishes, or stops, says why, and resumes."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet import QUICK, Fleet, job_spec, wait_until, write_corpus
from odd_fleets import AWAY_SECONDS, gated, odd_fleet
from outcomes import assert_each_once, assert_manifest, assert_no_leftovers, columns
from servers import PostgresServer, RedisServer
from small_disks import small_disk
from sqlalchemy import event, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pipeline.storage.jobs import resume_job, retry_dead
from pipeline.storage.reaping import expire, lead
from pipeline.storage.shards import claim
from pipeline.storage.sql import patiently
from schemas.tables import DocumentRow, Rejection
from workers.reaper import Reaper

FEW = {"kind": "copy", "seconds_per_shard": 7e-6}  # about seven short documents a shard


def names(number: int) -> list[str]:
    return [f"d{index}" for index in range(number)]


def six_seconds(fleet: Fleet) -> tuple[str, Path]:
    """A job of 60 documents, and the file without which it never is done."""
    gate = fleet.folder / "gate"
    corpus = write_corpus(fleet.folder / "c.jsonl", 60, gated(60, gate))
    return fleet.submit(job_spec(corpus, fleet.folder / "out", FEW)).job_id, gate


@contextmanager
def locked(fleet: Fleet) -> Iterator[sqlite3.Connection]:
    """The only one that writes to the fleet's SQLite."""
    connection = sqlite3.connect(fleet.engine.url.database or "", isolation_level=None, timeout=30)
    with closing(connection):
        connection.execute("begin exclusive")
        yield connection


def at_work(fleet: Fleet, job: str) -> None:
    """Wait until some of the job is done and some is not."""
    wait_until(lambda: len(fleet.shards(job, "done")) >= 1, 240, "a shard done")
    assert fleet.job(job).state == "running"


def test_a_broker_that_is_away(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, QUICK) as fleet:
        fleet.start_worker()
        job, gate = six_seconds(fleet)
        at_work(fleet, job)
        redis_server.kill()
        gate.touch()
        time.sleep(AWAY_SECONDS)
        redis_server.start()
        print(f"broker away for {AWAY_SECONDS} s: done {fleet.wait(job, 240):.1f} s after it was back")
        assert_each_once(fleet, job, names(60))


def test_a_broker_that_is_away_while_a_job_is_submitted(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """The shards stand in SQL; a reaper rings for them once there is a bell."""
    with odd_fleet(tmp_path, sqlite_url, redis_server.url) as fleet:
        fleet.start_worker()
        wait_until(lambda: " ready." in fleet.logs(), 240, "a worker")
        redis_server.kill()
        began = time.monotonic()
        one = {"kind": "copy", "seconds_per_shard": 1e-7}  # a document a shard
        job = fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 20), tmp_path / "out", one)).job_id
        assert time.monotonic() - began < 30.0, "it is waited for once, for six seconds, not at each of 20 shards"
        assert {shard.rung_at for shard in fleet.shards(job)} == {None}
        redis_server.start()
        fleet.wait(job, 240)
        assert_each_once(fleet, job, names(20))


def test_a_database_that_is_locked(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, QUICK) as fleet:
        fleet.start_worker()
        job, gate = six_seconds(fleet)
        at_work(fleet, job)
        with locked(fleet):
            gate.touch()
            time.sleep(AWAY_SECONDS)
        fleet.wait(job, 240)
        assert_each_once(fleet, job, names(60))
        assert {shard.attempt for shard in fleet.shards(job)} == {1}, "a lock is no failure of a document"


def test_nobody_loses_a_shard_for_a_lock_that_kept_the_reaper_waiting_too(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder could not renew the lease either: it gets a moment to do so before the lease is taken back."""
    job = fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 1), tmp_path / "out")).job_id
    (shard,) = fleet.shards(job)
    assert claim(fleet.engine, job, shard.id, "another machine", 0.2)
    reaper, asks = Reaper(fleet.engine, fleet.app, fleet.settings), threading.Event()

    def asking(*of: Any) -> bool:
        asks.set()
        return lead(*of)

    monkeypatch.setattr("workers.reaper.lead", asking)
    with ThreadPoolExecutor(1) as pool:
        with locked(fleet):
            reaped = pool.submit(reaper.reap)
            assert asks.wait(30)
            time.sleep(QUICK["renew_seconds"] + 0.1)
        reaped.result()
    assert len(fleet.shards(job, "leased")) == 1

    def taken_back() -> bool:
        reaper.reap()
        return bool(fleet.shards(job, "pending"))

    wait_until(taken_back, 30, "the lease taken back")


def test_a_lock_that_comes_between_two_looks_of_the_reaper_costs_nobody_a_shard(fleet: Fleet, tmp_path: Path) -> None:
    """What ran out while it waited to take leases back is left to its next look."""
    job = fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 1), tmp_path / "out")).job_id
    (shard,) = fleet.shards(job)
    assert claim(fleet.engine, job, shard.id, "another machine", 60.0)
    asks = threading.Event()
    event.listen(fleet.engine, "checkout", lambda *_: asks.set())
    with ThreadPoolExecutor(1) as pool:
        with locked(fleet) as holder:
            taken = pool.submit(expire, fleet.engine)
            assert asks.wait(30)
            time.sleep(1.0)
            holder.execute("update shards set lease_until = ? where state = 'leased'", [time.time() - 0.5])
            holder.execute("commit")
        assert taken.result() == 0
    assert expire(fleet.engine) == 1


def test_a_database_that_is_away(
    tmp_path: Path, postgres_url: str, postgres_server: PostgresServer, redis_server: RedisServer
) -> None:
    with odd_fleet(tmp_path, postgres_url, redis_server.url, QUICK) as fleet:
        worker = fleet.start_worker()
        job, gate = six_seconds(fleet)
        at_work(fleet, job)
        postgres_server.kill()
        gate.touch()
        time.sleep(AWAY_SECONDS)
        postgres_server.start()
        fleet.engine.dispose()
        fleet.wait(job, 240)
        assert_each_once(fleet, job, names(60))
        assert worker.process.poll() is None


def test_a_database_that_is_away_for_longer_than_anybody_waits(
    tmp_path: Path, postgres_url: str, postgres_server: PostgresServer, redis_server: RedisServer
) -> None:
    """Messages taken meanwhile are used up without a claim, commits fail: the reaper rings, and leases run out."""
    with odd_fleet(tmp_path, postgres_url, redis_server.url, QUICK) as fleet:
        worker = fleet.start_worker(ODD_PATIENCE="1")
        job, gate = six_seconds(fleet)
        at_work(fleet, job)
        postgres_server.kill()
        gate.touch()
        time.sleep(8.0)
        postgres_server.start()
        fleet.engine.dispose()
        fleet.wait(job, 240)
        assert_each_once(fleet, job, names(60))
        assert worker.process.poll() is None
        assert "raised unexpected: OperationalError" in fleet.logs(), "it was given up, not waited for"


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("select", None, Exception("away")),
        InterfaceError("select", None, Exception("connection already closed")),
        PoolTimeoutError("no connection to be had"),
        DBAPIError("select", None, Exception("terminated"), connection_invalidated=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_database_that_is_away_raises_is_waited_for(error: Exception) -> None:
    times = iter([error, error, None])

    def ask() -> str:
        if failure := next(times):
            raise failure
        return "answer"

    assert patiently(ask, pause=0.01) == "answer"


def test_what_a_database_answers_is_an_answer() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise IntegrityError("insert", None, Exception("UNIQUE constraint failed"))

    with pytest.raises(IntegrityError):
        patiently(ask, pause=0.01)
    assert len(asked) == 1


def test_a_full_disk_stops_the_job_and_resume_ends_it(fleet: Fleet, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "2m") as disk:
        draw = random.Random(0)
        corpus = write_corpus(tmp_path / "c.jsonl", 40, lambda number: f"{number} {draw.randbytes(4_000).hex()}")
        job = fleet.submit(job_spec(corpus, disk / "out", {"kind": "copy", "seconds_per_shard": 7e-5})).job_id
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        os.truncate(filler, filler.stat().st_size - 16_384)  # room for a folder and the first bytes of a part
        fleet.start_worker()
        fleet.wait(job, 240, state="stopped")
        row = fleet.job(job)
        assert row.stop_code == "error"
        assert "No space left" in row.error
        wait_until(lambda: not fleet.shards(job, "leased"), 30, "shards handed back")
        assert not [path for path in disk.rglob("*") if path.name.startswith(".tmp-")]
        filler.unlink()
        assert resume_job(fleet.engine, job)
        fleet.wait(job, 240)
        assert_each_once(fleet, job, names(40))


def dead(fleet: Fleet, job: str) -> dict[str, Any]:
    with fleet.engine.connect() as connection:
        rows = connection.execute(select(Rejection).where(Rejection.job_id == job))
        return {row.doc_id: row for row in rows}


def test_one_poisonous_document_dies_alone(each_fleet: Fleet, tmp_path: Path) -> None:
    """It is found, listed with the reason, and tried again when asked; all others are done, each once."""
    fleet, cure = each_fleet, tmp_path / "cure"
    how = "die" if fleet.engine.dialect.name == "postgresql" else "raise"
    texts = {6: f"{how} until {cure}"}
    fleet.start_worker(timings={"max_attempts": 2})
    corpus = write_corpus(tmp_path / "c.jsonl", 16, lambda number: texts.get(number, f"document {number}"))
    job = fleet.submit(job_spec(corpus, tmp_path / "out", {"kind": "copy", "seconds_per_shard": 1.0})).job_id
    seconds = fleet.wait(job, 300)  # each death costs the start of another process
    print(f"a document that will {how}: {seconds:.1f} s")
    listed = dead(fleet, job)
    assert list(listed) == ["d6"]
    assert (listed["d6"].status, listed["d6"].code) == ("dead", "failed" if how == "raise" else "worker_lost")
    assert ("cannot be worked on" if how == "raise" else "worker died") in listed["d6"].reason
    others = [seq for seq in range(16) if seq != 6]
    assert_manifest(fleet, job, 0, others)
    assert fleet.count(DocumentRow, DocumentRow.job_id == job, DocumentRow.status == "done") == 15
    output = Path(fleet.job(job).output)
    assert sorted(next(columns(output / "data", "seq"))) == others
    assert_no_leftovers(fleet, job)

    cure.touch()
    before = odd_lines(fleet)
    assert retry_dead(fleet.engine, job, 2) == 1
    fleet.wait(job, 240)
    assert odd_lines(fleet) - before == {"d6": 1}, "the others are not touched"
    assert not dead(fleet, job)
    assert_manifest(fleet, job, 0, list(range(16)))
    assert sorted(next(columns(output / "data", "seq"))) == list(range(16))


def odd_lines(fleet: Fleet) -> Counter[str]:
    """How often each document was worked on."""
    return Counter(Path(fleet.environment["ODD_LOG"]).read_text().split())
