"""Workers that leave, by request or by a kill: in time, and their shard is soon worked on again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet import QUICK, Fleet, job_spec, wait_until, write_corpus
from hosted_rig import PRICED
from odd_fleets import LONG, gated, odd_fleet
from openai_server import FakeOpenAI, Served
from outcomes import assert_each_once
from servers import RedisServer

DEFAULT: dict[str, float] = {}  # the settings' own timings: lease 60 s, reaper 10 s, grace 60 s
OTHER_MACHINE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
NUMBERS = {"copy": 1, "compress": 16_000, "local": 200, "hosted": 200}  # a few shards; where one, it is that one again
GRACE = {"soft_shutdown_seconds": 18.0, "renew_seconds": 1.0}  # asked to hand back after 9 s; often says how far it is
LEFT = 12.0  # what a busy machine may take over the end of a process, after its grace; no shard below ends as soon


def leased(fleet: Fleet, job: str) -> Any:
    """The shard that a worker holds."""
    wait_until(lambda: bool(fleet.shards(job, "leased")), 240, "a shard at work")
    return fleet.shards(job, "leased")[0]


def under_way(fleet: Fleet, job: str) -> Any:
    """The shard that is worked on, once some of it is done: a model that is being loaded hears nothing."""
    wait_until(lambda: any(shard.documents_done for shard in fleet.shards(job, "leased")), 240, "a shard under way")
    return fleet.shards(job, "leased")[0]


def long_shard(fleet: Fleet) -> Any:
    """The one shard of a job of 20 documents, once it is worked on: to its end when there is a file ``gate``."""
    corpus = write_corpus(fleet.folder / "c.jsonl", 20, gated(20, fleet.folder / "gate"))
    spec = job_spec(corpus, fleet.folder / "out", {"kind": "copy", "seconds_per_shard": 1e6})
    return leased(fleet, fleet.submit(spec).job_id)


def assert_worked_on_again(fleet: Fleet, shard: Any, after: str) -> None:
    """Within 90 s of what befell its worker now, and each document is done once."""
    (fleet.folder / "gate").touch()
    job, attempt = shard.job_id, shard.attempt
    seconds = wait_until(lambda: any(row.attempt > attempt for row in fleet.shards(job)), 90, "worked on again")
    print(f"{after}: worked on again {seconds:.1f} s later")
    fleet.wait(job, 240)
    assert_each_once(fleet, job, [f"d{number}" for number in range(20)])


def stage(kind: str, endpoint: str, model: Path) -> tuple[dict[str, Any], str]:
    """A stage that takes 20 s or more over one shard, and the target it is for."""
    long = {"seconds_per_shard": 1e6}
    return {
        "copy": ({"kind": "copy", **long}, "tiny"),
        "compress": ({"kind": "compress", "model": str(model), "rate": 0.5, "batch_tokens": 2048, **long}, str(model)),
        "local": ({"kind": "generate", "max_new_tokens": 400, "batch_tokens": 2048, **long}, str(model)),
        "hosted": ({"kind": "generate", "backend": "openai", "base_url": endpoint, "concurrency": 1, **long}, PRICED),
    }[kind]


@pytest.mark.parametrize("kind", ["copy", "compress", "local", "hosted"])
def test_sigterm_in_any_stage(
    kind: str, tmp_path: Path, sqlite_url: str, redis_server: RedisServer, tiny_model: Path
) -> None:
    """The worker leaves within its grace period; its shard, no attempt the poorer, is taken by another at once."""
    fake = FakeOpenAI(seconds=0.2)
    with Served(fake) as url, odd_fleet(tmp_path, sqlite_url, redis_server.url, DEFAULT) as fleet:
        settings, target = stage(kind, url, tiny_model)
        text = "sleep 100" if kind == "copy" else "{} apples. " + "How many are left if he eats two? " * 12
        corpus = write_corpus(tmp_path / "c.jsonl", NUMBERS[kind], text.format)
        job = fleet.submit(job_spec(corpus, tmp_path / "out", settings, target={"model": target})).job_id
        first = fleet.start_worker(timings=GRACE)
        shard = under_way(fleet, job) if kind != "copy" else leased(fleet, job)
        time.sleep(1.0)
        seconds = first.terminate(60)
        assert seconds < GRACE["soft_shutdown_seconds"] + LEFT
        (again,) = [row for row in fleet.shards(job) if row.id == shard.id]
        if again.state != "done":  # a fast machine may have ended the shard within the grace: as good
            assert (again.state, again.owner, again.lease_until) == ("pending", None, None)
            assert again.attempt_limit - again.attempt == shard.attempt_limit - shard.attempt + 1
            assert again.rung_at is not None
        began = time.monotonic()
        fleet.start_worker(timings=GRACE)
        leased(fleet, job)
        print(f"SIGTERM in {kind}: left after {seconds:.1f} s, work went on {time.monotonic() - began:.1f} s later")


@pytest.mark.parametrize("what", ["child", "worker"])
def test_a_killed_worker_at_default_settings(
    what: str, tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """SIGKILL to the child, or to parent and child: the shard is worked on again within 90 s, and done once."""
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, DEFAULT) as fleet:
        first = fleet.start_worker()
        fleet.start_worker() if what == "worker" else None
        shard = long_shard(fleet)
        owner = int(shard.owner.rsplit(":", 2)[1])
        victim = next(worker for worker in fleet.workers if worker.child == owner)
        assert what == "worker" or victim is first
        os.kill(owner, signal.SIGKILL)
        if what == "worker":
            victim.kill()
        assert_worked_on_again(fleet, shard, f"SIGKILL to the {what}")


def test_a_machine_that_is_gone(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    """Nobody can see that its process died (it ran in its own space of process ids): the lease says so in time."""
    with odd_fleet(tmp_path, sqlite_url, redis_server.url, DEFAULT if LONG else QUICK) as fleet:
        there = fleet.start_worker(prefix=OTHER_MACHINE)
        shard = long_shard(fleet)
        fleet.start_worker()
        there.kill()
        assert_worked_on_again(fleet, shard, "a machine gone")


def test_an_orphaned_child_leaves_too(fleet: Fleet, tmp_path: Path) -> None:
    """SIGKILL to the parent alone: its child goes as well, and no process is left."""
    worker = fleet.start_worker()
    corpus = write_corpus(tmp_path / "c.jsonl", 2, lambda _: "sleep 300")
    job = fleet.submit(job_spec(corpus, tmp_path / "out")).job_id
    leased(fleet, job)
    child = worker.child
    assert child is not None
    worker.kill()
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", 50, "its end")


def test_a_worker_that_gives_up_does_not_pass_for_one_that_was_told_to_leave(fleet: Fleet) -> None:
    """Its child dies before it was ever ready: exit code 1, so that what keeps it running starts it again."""
    first = fleet.start_worker()

    def gave_up() -> bool:
        first.kill_child()  # one that was ready is replaced, and that one is killed sooner
        return first.process.poll() is not None

    wait_until(gave_up, 240, "a worker that gives up")
    assert first.process.returncode == 1
    assert "ended by itself" in first.log.read_text()
    second = fleet.start_worker()
    wait_until(lambda: " ready." in second.log.read_text(), 240, "a worker")
    second.terminate(30)
    assert second.process.returncode == 0
