"""What the queue promises, measured on a real broker: one holder a shard, order, nothing but JSON, small messages."""

from __future__ import annotations

import base64
import json
import pickle
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet import PATIENT, Fleet, job_spec, wait_until, write_corpus
from odd_fleets import odd_fleet
from outcomes import assert_each_once, fingerprint
from servers import RedisServer

from workers.app import PREFIX, RUN_SHARD, queue_name, queue_names
from workers.heartbeat import UNACKED_INDEX

ONE = {"kind": "copy", "seconds_per_shard": 1e-7}  # a document a shard


def test_what_is_urgent_and_what_ends_documents_comes_first() -> None:
    """Scores before the compression of the next job: a night of many jobs ends them one by one."""
    names = queue_names()
    assert names.index("contextmill.align.high") < names.index("contextmill.publish.bulk")
    order = [name.split(".")[1] for name in names if name.endswith(".bulk")]
    assert order == [
        "publish",
        "evaluate",
        "recover",
        "copy",
        "compress",
        "encode",
        "generate",
        "align",
        "distill",
        "pretrain",
        "finetune",
    ]


def odd_lines(fleet: Fleet) -> Counter[str]:
    """How often each document was worked on."""
    return Counter(Path(fleet.environment["ODD_LOG"]).read_text().split())


def ready(fleet: Fleet) -> None:
    """Wait until every worker takes messages."""
    for worker in fleet.workers:
        wait_until(lambda w=worker: " ready." in w.log.read_text(), 240, "a worker")  # type: ignore[misc]


def long_shard(fleet: Fleet, words: str) -> str:
    """A job whose one shard takes as long as its document says, before two workers; the broker looks every 10 s."""
    fleet.start_worker()
    fleet.start_worker()
    ready(fleet)
    corpus = write_corpus(fleet.folder / "c.jsonl", 1, lambda _: words)
    return fleet.submit(job_spec(corpus, fleet.folder / "out")).job_id


def duplicates(fleet: Fleet) -> int:
    """How often the one shard's message came to a worker for nothing."""
    return len(re.findall("shard 0-0-1 of job .*: nothing to claim", fleet.logs()))


def duplicates_of_the_start(fleet: Fleet, job: str) -> int:
    """A reaper may have rung for the shard just when its submission did: such come within a look or two of it."""
    wait_until(lambda: bool(fleet.shards(job, "leased")), 240, "the shard at work")
    time.sleep(3 * PATIENT["reap_seconds"])
    return duplicates(fleet)


def test_a_heartbeat_keeps_a_long_shard_single(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    """Without the renewal the broker would ring once more after 8 s, or up to 10 s later."""
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, {**PATIENT, "visibility_timeout": 8.0}) as fleet:
        job = long_shard(fleet, "sleep 20")
        before = duplicates_of_the_start(fleet, job)
        fleet.wait(job, 240)
        assert_each_once(fleet, job, ["d0"])
        assert odd_lines(fleet) == {"d0": 1}
        assert duplicates(fleet) == before
        assert [shard.attempt for shard in fleet.shards(job)] == [1, 1]


def test_without_a_heartbeat_the_duplicate_finds_nothing_to_claim(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """The broker takes the message for one received long ago; the lease in SQL still keeps the shard single."""
    gate, never = tmp_path / "gate", {"renew_seconds": 1e4, "lease_seconds": 2e4, "visibility_timeout": 2e4}
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, {**PATIENT, **never}) as fleet:
        job = long_shard(fleet, f"wait until {gate}")  # no progress either, with which a lease is renewed
        before = duplicates_of_the_start(fleet, job)

        def rung_twice() -> bool:
            tags: list[Any] = list(fleet.client.zrange(UNACKED_INDEX, 0, -1))
            for tag in tags:
                fleet.client.zadd(UNACKED_INDEX, {tag: time.time() - 3e4}, xx=True)
            return duplicates(fleet) > before

        wait_until(rung_twice, 240, "the duplicate")
        assert fleet.job(job).state == "running"
        gate.touch()
        fleet.wait(job, 240)
        assert odd_lines(fleet) == {"d0": 1}
        assert [shard.attempt for shard in fleet.shards(job)] == [1, 1]


def test_high_before_bulk_and_one_message_in_hand(fleet: Fleet, tmp_path: Path) -> None:
    def texts(word: str) -> Any:
        return lambda number: f"sleep 0.15 {word} {number}"

    bulk = job_spec(write_corpus(tmp_path / "bulk.jsonl", 12, texts("bulk")), tmp_path / "out", ONE)
    corpus = write_corpus(tmp_path / "high.jsonl", 6, texts("high"))
    corpus.write_text(corpus.read_text().replace('"d', '"h'))
    high = job_spec(corpus, tmp_path / "out", ONE, priority="high", name="high")
    first = fleet.submit(bulk).job_id  # both wait before there is a worker: bulk was there first
    second = fleet.submit(high).job_id
    worker = fleet.start_worker()
    most = 0
    while fleet.job(first).state != "done":
        most = max(most, int(fleet.client.hlen(f"{PREFIX}unacked")))
        assert worker.process.poll() is None
        time.sleep(0.02)
    assert most == 1, "a worker holds the one message it works on"
    order = Path(fleet.environment["ODD_LOG"]).read_text().split()
    assert [name[0] for name in order] == ["h"] * 6 + ["d"] * 12
    fleet.wait(second, 240)
    assert_each_once(fleet, second, [f"h{number}" for number in range(6)])


def test_what_does_not_belong_there_is_harmless(fleet: Fleet, tmp_path: Path) -> None:
    """Pickles, garbage, unknown tasks, jobs and shards, wrong arguments: refused, and the worker works on.

    What is no message at all is dropped, and the log says so.
    """
    worker = fleet.start_worker()
    ready(fleet)
    done = fleet.submit(job_spec(write_corpus(tmp_path / "c.jsonl", 5), tmp_path / "out")).job_id
    fleet.wait(done, 240)
    before = fingerprint(fleet, done)
    queue = queue_name("copy", "bulk")
    marker = tmp_path / "pickle-was-run"
    rogue(fleet, queue, base64.b64encode(pickle.dumps(Rogue(marker))).decode(), "application/x-python-serialize")
    rogue(fleet, queue, "this is no JSON", "application/json")
    for entry in (b"no JSON", b"\xff\xfe", b"", b"7", b"[]", b"{}", b'{"headers": []}', b"[" * 100_000):
        fleet.client.lpush(f"{PREFIX}{queue}", entry)
    for headers in ODD_HEADERS:
        rogue(fleet, queue, json.dumps([[done, "0-0-5"], {}, None]), "application/json", headers)
    for content in ({"content-encoding": 5}, {"content-type": ["application/json"]}):
        rogue(fleet, queue, json.dumps([[done, "0-0-5"], {}, None]), "application/json", content=content)
    bodies: list[Any] = [{"not": "a task"}, [], [1, 2, 3], None, [[done, "0-0-5"], {}, None]]
    for body in bodies:
        rogue(fleet, queue, json.dumps(body), "application/json")
    for args in (("no-such-job", "0-0-5"), (done, "no-such-shard"), (done, "0-0-5"), (done,), (done, 7, "more")):
        fleet.app.send_task(RUN_SHARD, args=args, queue=queue, routing_key=queue)
    fleet.app.send_task("os.system", args=("false",), queue=queue, routing_key=queue)
    pid = worker.child
    after = fleet.submit(job_spec(write_corpus(tmp_path / "d.jsonl", 6), tmp_path / "out")).job_id
    fleet.wait(after, 240)
    assert worker.log.read_text(errors="replace").count("that is no message") == 8 + 2
    # A job is done just before its last message is acknowledged.
    wait_until(lambda: not fleet.client.hlen(f"{PREFIX}unacked"), 240, "nothing that is left to be delivered again")
    assert not marker.exists()
    assert worker.process.poll() is None
    assert worker.child == pid, "not even the child had to be replaced"
    assert fingerprint(fleet, done) == before


class Rogue:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


ODD_HEADERS: list[dict[str, Any]] = [
    {"task": ["unhashable"]}, {"id": None}, {"timelimit": 5}, {"eta": "someday"}, {"expires": []}, {"retries": "many"},
    {"stamped_headers": 7}, {"task": "os.system", "id": "1"},
]  # fmt: skip


def rogue(
    fleet: Fleet, queue: str, body: str, content_type: str,
    headers: Mapping[str, Any] | None = None, content: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """A message as kombu lays it into Redis, its body whatever one likes."""
    tag = uuid.uuid4().hex
    encoded = body if content_type != "application/json" else base64.b64encode(body.encode()).decode()
    message = {
        "body": encoded, "content-type": content_type,
        "content-encoding": "binary" if "python" in content_type else "utf-8",
        "headers": {"lang": "py", "task": RUN_SHARD, "id": tag, "argsrepr": "", "kwargsrepr": "", "root_id": tag,
                    **(headers or {})},
        "properties": {"correlation_id": tag, "delivery_mode": 2, "delivery_tag": tag, "priority": 0,
                       "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": queue}},
        **(content or {}),
    }  # fmt: skip
    fleet.client.lpush(f"{PREFIX}{queue}", json.dumps(message))


def test_a_message_is_as_small_for_large_documents(fleet: Fleet, tmp_path: Path) -> None:
    """Messages carry two ids: what Redis holds for a shard does not grow with its documents."""

    def held(size: int) -> int:
        corpus = write_corpus(tmp_path / f"{size}.jsonl", 200, lambda number: f"{number} " + "x" * size)
        fleet.submit(job_spec(corpus, tmp_path / "out", {"kind": "copy", "seconds_per_shard": 1e-9}))
        queue = f"{PREFIX}{queue_name('copy', 'bulk')}"
        assert fleet.client.llen(queue) == 200
        memory = fleet.client.memory_usage(queue, samples=0)
        assert memory is not None
        fleet.client.delete(queue)
        return memory // 200

    small, large = held(10), held(20_000)
    assert 0 < small < 4_000
    assert abs(large - small) < 50


def test_a_broker_that_lost_everything_is_rung_again(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """Redis comes back empty: every pending shard is rung for once more, and the job finishes."""
    with odd_fleet(tmp_path, sqlite_url, redis_server.url) as fleet:
        fleet.start_worker()
        ready(fleet)
        corpus = write_corpus(tmp_path / "c.jsonl", 30, lambda number: f"sleep 0.1 {number}")
        job = fleet.submit(job_spec(corpus, tmp_path / "out", ONE)).job_id
        wait_until(lambda: len(fleet.shards(job, "done")) > 3, 240, "some shards done")
        redis_server.kill()
        for file in redis_server.folder.glob("appendonlydir/*"):
            file.unlink()
        redis_server.start()
        fleet.wait(job, 240)
        assert_each_once(fleet, job, [f"d{number}" for number in range(30)])
