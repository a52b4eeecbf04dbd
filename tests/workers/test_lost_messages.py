"""Messages that a broker lost are rung for again, however busy it is with others; and never more than were lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fleet import Fleet, job_spec, wait_until, write_corpus
from odd_fleets import gated
from outcomes import assert_each_once
from sqlalchemy import insert, update

from pipeline.storage import shards
from pipeline.storage.reaping import lead, owed, resign
from pipeline.storage.shards import shard_row
from schemas.tables import Shard
from workers.app import PREFIX, queue_name
from workers.doorbell import UNACKED, CeleryDoorbell, held, ring_due
from workers.heartbeat import UNACKED_INDEX
from workers.processes import owner
from workers.reaper import TASK, Reaper

ONE = {"kind": "copy", "seconds_per_shard": 1e-7}  # a document a shard
BULK = f"{PREFIX}{queue_name('copy', 'bulk')}"


def waiting(fleet: Fleet) -> Counter[str]:
    """How often each shard's message lies in the queue."""
    entries: list[Any] = list(fleet.client.lrange(BULK, 0, -1))
    return Counter(json.loads(entry)["headers"]["argsrepr"].split("'")[3] for entry in entries)


def lose(fleet: Fleet, shard: str) -> Any:
    """The broker forgets the message of this shard, which is given."""
    entries: list[Any] = list(fleet.client.lrange(BULK, 0, -1))
    (message,) = [entry for entry in entries if f"'{shard}'" in json.loads(entry)["headers"]["argsrepr"]]
    assert fleet.client.lrem(BULK, 1, message) == 1
    return json.loads(message)


def test_a_lost_message_is_rung_again_though_many_others_wait(each_fleet: Fleet, tmp_path: Path) -> None:
    """Messages in other queues, or in the hands of workers, do not hide it."""
    fleet = each_fleet
    job = fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 12), tmp_path / "out", ONE)).job_id
    high = write_corpus(tmp_path / "h.jsonl", 30, "urgent {}".format)
    fleet.submit(job_spec(high, tmp_path / "out", ONE, priority="high"))
    for number in range(20):
        fleet.client.lpush(f"{PREFIX}{queue_name('generate', 'bulk')}", f"of another application {number}")
        others: dict[Any, Any] = {
            f"in hand {number}": json.dumps([{}, "", "contextmill.generate.bulk"]),
            f"odd {number}": "odd",
        }
        fleet.client.hset(UNACKED, mapping=others)
        fleet.client.zadd(UNACKED_INDEX, dict.fromkeys(others, time.time()))
    lose(fleet, "0-0-1")
    reaper = Reaper(fleet.engine, fleet.app, fleet.settings)
    reaper.reap()
    assert "0-0-1" not in waiting(fleet), "one look may be wrong: a message may be on its way"
    for _ in range(4):
        reaper.reap()
        assert waiting(fleet) == {f"0-{n}-{n + 1}": 1 for n in range(12)}, "again, and only that one"
    assert len(fleet.shards(job)) == 12


def test_a_message_in_the_hands_of_the_dead_is_rung_again(fleet: Fleet, tmp_path: Path) -> None:
    """Of a worker that was killed between its message and its claim: the broker would wait for quarter of an hour."""
    fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 3), tmp_path / "out", ONE))
    message = lose(fleet, "0-0-1")
    fleet.client.hset(UNACKED, "tag", json.dumps([message, "", queue_name("copy", "bulk")]))
    reaper = Reaper(fleet.engine, fleet.app, fleet.settings)
    for seconds, rung in ((fleet.settings.lease_seconds - 10, False), (fleet.settings.lease_seconds + 10, True)):
        fleet.client.zadd(UNACKED_INDEX, {"tag": time.time() - seconds})
        reaper.reap()
        reaper.reap()
        assert ("0-0-1" in waiting(fleet)) is rung


def test_looks_with_another_leader_between_them_are_no_two_in_a_row(fleet: Fleet, tmp_path: Path) -> None:
    fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 3), tmp_path / "out", ONE))
    lose(fleet, "0-0-1")
    reaper = Reaper(fleet.engine, fleet.app, fleet.settings)
    reaper.reap()
    resign(fleet.engine, TASK, owner())
    assert lead(fleet.engine, TASK, "another", 60)
    reaper.reap()
    resign(fleet.engine, TASK, "another")
    reaper.reap()
    assert "0-0-1" not in waiting(fleet)
    reaper.reap()
    assert "0-0-1" in waiting(fleet)


def test_whichever_was_lost_is_found(fleet: Fleet, tmp_path: Path) -> None:
    """Nobody knows which: the oldest are rung for first, and the lost ones end up being the oldest."""
    gate = tmp_path / "gate"  # nobody comes beyond the sixteenth before another message is lost
    corpus = write_corpus(tmp_path / "c.jsonl", 40, gated(16, gate))
    job = fleet.submit(job_spec(corpus, tmp_path / "out", ONE)).job_id
    lost = ["0-17-18", "0-25-26", "0-39-40"]
    for shard in lost:
        lose(fleet, shard)
    fleet.start_worker()
    wait_until(lambda: len(fleet.shards(job, "done")) > 10, 240, "work under way")
    lose(fleet, "0-30-31")
    gate.touch()
    fleet.wait(job, 240)
    assert_each_once(fleet, job, [f"d{number}" for number in range(40)])
    duplicates = fleet.logs().count("nothing to claim")
    print(f"4 messages lost of 40: found with {duplicates} needless ones")
    assert duplicates <= 3 * 4


def test_a_big_backlog_is_rung_for_once(fleet: Fleet, tmp_path: Path) -> None:
    """By the reaper that leads: neither another, nor the end of each shard, rings for all that waits besides."""
    number = 3_000
    job = fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 1), tmp_path / "out", ONE)).job_id
    with fleet.engine.begin() as connection:
        connection.execute(insert(Shard), [shard_row(job, 0, n, n + 1, 3) for n in range(1, number)])
    claim = shards.claim(fleet.engine, job, "0-0-1", "test", 60.0)
    assert claim is not None
    shards.release(fleet.engine, claim, error=None)
    fleet.client.delete(BULK)
    assert ring_due(fleet.engine, CeleryDoorbell(fleet.app), of=claim) == 1
    assert waiting(fleet) == {"0-0-1": 1}
    reaper, other = (Reaper(fleet.engine, fleet.app, fleet.settings) for _ in range(2))
    for _ in range(3):
        reaper.reap()
        other.reap()
    assert held(fleet.client, 60.0) == owed(fleet.engine) == {("copy", "bulk"): number}
    fleet.client.delete(BULK)  # all of it lost
    for _ in range(4):
        reaper.reap()
        other.reap()
    assert held(fleet.client, 60.0)["copy", "bulk"] == number
    with fleet.engine.begin() as connection:  # many are worked on, more were only just taken from the queue
        connection.execute(update(Shard).where(Shard.start < 500).values(state="leased", lease_until=2e9))
    for taken in range(700):
        message: Any = fleet.client.rpop(BULK)
        fleet.client.hset(UNACKED, str(taken), json.dumps([json.loads(message), "", "contextmill.copy.bulk"]))
        fleet.client.zadd(UNACKED_INDEX, {str(taken): time.time()})
    for _ in range(3):
        reaper.reap()
    assert fleet.client.llen(BULK) == number - 700
