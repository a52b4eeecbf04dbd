"""A time limit that strikes what stands still, and lets alone what moves, however long it takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleet import PATIENT, Fleet, job_spec, wait_until, write_corpus
from odd_fleets import odd_fleet
from outcomes import assert_each_once
from servers import RedisServer

from pipeline.work import Overdue
from workers.watchdog import Watchdog

SLOW_SHARD = {"kind": "copy", "seconds_per_shard": 1.0}  # shards of six: a worker has four of them
LIMITS = {**PATIENT, "soft_time_limit": 5.0, "time_limit": 10.0, "max_attempts": 2}


def test_what_moves_is_left_alone_and_what_stands_is_interrupted() -> None:
    with Watchdog(4.0, 200) as watchdog:  # what a busy machine may keep us from saying that we moved
        for _ in range(45):
            time.sleep(0.1)
            watchdog.moved()
        with pytest.raises(Overdue, match="SOFT_TIME_LIMIT"):
            time.sleep(100)
        watchdog.moved()
    time.sleep(4.1)  # outside of the block nothing strikes


def test_a_native_call_that_never_returns_ends_the_process() -> None:
    stuck = "from workers.watchdog import Watchdog\nwith Watchdog(0.3, 1): sum(range(10**13))"  # looks at no signal
    ended = subprocess.run([sys.executable, "-c", stuck], capture_output=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert b"most recent call first" in ended.stderr  # where it stood


def test_a_shard_longer_than_the_limit_is_done_while_it_moves(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, LIMITS) as fleet:
        fleet.start_worker()
        corpus = write_corpus(tmp_path / "c.jsonl", 22, "deaf 0.9 {}".format)
        job = fleet.submit(job_spec(corpus, tmp_path / "out", SLOW_SHARD)).job_id
        wait_until(lambda: len(fleet.shards(job, "done")) > 0, 240, "the longest shard done")
        fleet.wait(job, 240)
        assert_each_once(fleet, job, [f"d{number}" for number in range(22)])
        assert {shard.attempt for shard in fleet.shards(job)} == {1}
        assert max(_seconds(fleet, job)) > LIMITS["soft_time_limit"]


def test_a_shard_that_stands_still_is_interrupted(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, LIMITS) as fleet:
        fleet.start_worker()
        job = fleet.submit(
            job_spec(write_corpus(tmp_path / "c.jsonl", 1, "deaf 300 {}".format), tmp_path / "out")
        ).job_id
        wait_until(lambda: any("no progress" in (shard.error or "") for shard in fleet.shards(job)), 240, "interrupted")


def _seconds(fleet: Fleet, job: str) -> list[float]:
    return [shard.seconds or 0.0 for shard in fleet.shards(job, "done")]
