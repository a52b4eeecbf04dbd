"""Nothing lost, nothing twice: kill workers and broker at random moments, deliver messages twice and late, then count.

Each seed decides what is killed and when. ``make chaos SEEDS=20`` runs this alone, one line a seed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, Worker, job_spec, wait_until, write_corpus
from hosted_rig import PRICED, same_bill
from outcomes import assert_each_once, fingerprint, total
from servers import RedisServer

from pipeline.watching import ENDED
from schemas.job import JobSpec
from schemas.tables import Budget, Request, Usage

DOCUMENTS = 2_000
IDS = [f"d{number}" for number in range(DOCUMENTS)]
WORKERS = 2
MUST = ("child", "parent", "broker")  # every seed kills each of these, and two or three more drawn from them
FAKE = Path(__file__).parent.parent / "fakes" / "openai_server.py"


@dataclass
class Chaos:
    """Strikes at a running job as its seed says. When, is counted in documents done: a fast machine is hit as often."""

    fleet: Fleet
    broker: RedisServer
    job_id: str
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        first = self.random.sample(MUST, k=len(MUST))
        more = self.random.choices(MUST, k=self.random.randint(2, 3))
        moments = sorted(self.random.uniform(0.0, 0.4) for _ in first) + sorted(
            self.random.uniform(0.4, 0.8) for _ in more
        )
        for moment, strike in zip(moments, [*first, *more], strict=True):
            wait_until(lambda moment=moment: self.progress() > moment, 240, f"{moment:.0%}")  # type: ignore[misc]
            time.sleep(self.random.uniform(0.0, 0.2))
            if self.fleet.job(self.job_id).state in ENDED:
                break
            self.duplicate(self.random.randint(1, 4))
            self.strike(strike)
            self.done[strike] += 1
        assert set(MUST) <= self.done.keys(), "the job was over before it was struck by everything"

    def progress(self) -> float:
        """The part of all (document, stage) pairs that is committed."""
        done = sum(shard.stop - shard.start for shard in self.fleet.shards(self.job_id, "done"))
        return float(done / DOCUMENTS / len(self.fleet.job(self.job_id).spec["stages"]))

    def duplicate(self, number: int) -> None:
        """Deliver messages again: of shards that wait, that are worked on, and that are done."""
        for shard in self.random.choices(self.fleet.shards(self.job_id), k=number):
            self.fleet.ring(self.job_id, shard.id)
            self.done["duplicates"] += 1

    def strike(self, kind: str) -> None:
        alive = self.alive()
        worker = self.random.choice([worker for worker in alive if worker.child] or alive)
        if kind == "child":
            wait_until(lambda: worker.kill_child() or worker.process.poll() is not None, 60, "a child to kill")
        elif kind == "parent":
            worker.kill()
            self.fleet.start_worker()
        else:
            self.broker.kill()
            time.sleep(self.random.uniform(0.1, 2.0))
            self.broker.start()

    def alive(self) -> list[Worker]:
        """The workers; one that ended is replaced, as whatever keeps it running in production would do.

        Celery gives up where its child dies before it was ever ready, which a kill at the wrong moment brings about.
        """
        alive = [worker for worker in self.fleet.workers if worker.process.poll() is None]
        return alive + [self.fleet.start_worker() for _ in range(WORKERS - len(alive))]

    def finished(self) -> bool:
        return bool(self.alive()) and self.fleet.job(self.job_id).state in ENDED

    def too_late(self) -> None:
        """Every message once more, after the job is done: none may have an effect."""
        wait_until(self.fleet.drained, 240, "an empty broker")
        before = fingerprint(self.fleet, self.job_id)
        for shard in self.fleet.shards(self.job_id):
            self.fleet.ring(self.job_id, shard.id)
            self.done["duplicates"] += 1
        wait_until(self.fleet.drained, 240, "an empty broker")
        assert fingerprint(self.fleet, self.job_id) == before


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_nothing_is_lost_and_nothing_done_twice(
    chaos_seed: int,
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seeds take turns: no-op, hosted and local-model stages; SQLite and PostgreSQL."""
    kind = ("copy", "hosted", "models")[chaos_seed % 3]
    database = request.getfixturevalue("sqlite_url" if chaos_seed % 2 == 0 else "postgres_url")
    began = time.monotonic()
    with fake_endpoint(tmp_path, chaos_seed) as (endpoint, bill), Fleet(tmp_path, database, redis_server.url) as fleet:
        for _ in range(WORKERS):
            fleet.start_worker()
        spec = make_spec(kind, tmp_path, tiny_model, endpoint)
        chaos = Chaos(fleet, redis_server, fleet.submit(spec, WORKERS).job_id, random.Random(chaos_seed))
        chaos.run()
        wait_until(chaos.finished, 400, "the end of the job")
        chaos.too_late()
        for worker in fleet.workers:
            if worker.process.poll() is None:
                worker.terminate(30)
        assert_each_once(fleet, chaos.job_id, IDS)
        extra = assert_bill(fleet, chaos.job_id, bill) if kind == "hosted" else ""
    struck = ", ".join(f"{name} {chaos.done[name]}" for name in (*MUST, "duplicates"))
    line = f"seed {chaos_seed}: {kind} on {database.partition(':')[0]}; killed {struck}; {extra}"
    with capsys.disabled():
        print(f"\n{line}{time.monotonic() - began:.0f} s; ok", flush=True)


def make_spec(kind: str, folder: Path, model: Path, endpoint: str) -> JobSpec:
    """A job of about 200 shards a stage, or 30 where each takes a model some time."""
    corpus = write_corpus(folder / "corpus.jsonl", DOCUMENTS, "How many of {} apples are left if he eats two?".format)
    stages: dict[str, list[dict[str, Any]]] = {
        "copy": [{"kind": "copy", "seconds_per_shard": 1e-5}],
        "hosted": [
            {"kind": "copy", "seconds_per_shard": 1e-4},
            {"kind": "generate", "backend": "openai", "base_url": endpoint, "max_new_tokens": 16, "budget_usd": "1000",
             "seconds_per_shard": 1.5},
        ],
        "models": [
            {"kind": "compress", "model": str(model), "rate": 0.5, "seconds_per_shard": 0.25},
            {"kind": "generate", "max_new_tokens": 16, "seconds_per_shard": 30.0},
        ],
    }  # fmt: skip
    target = {"model": PRICED if kind == "hosted" else str(model)}
    return job_spec(corpus, folder / "out", *stages[kind], target=target)


@contextmanager
def fake_endpoint(folder: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """The fake server in a process of its own: its address and the file of its bill."""
    bill = folder / "bill.jsonl"
    faults = json.dumps({"429": 0.01, "500": 0.01, "drop_before": 0.005, "drop_after": 0.002})
    command = [sys.executable, str(FAKE), "--bill", str(bill), "--faults", faults, "--seed", str(seed)]
    with subprocess.Popen([*command, "--seconds", "0.01"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        try:
            yield f"http://127.0.0.1:{port}/v1", bill
        finally:
            process.terminate()


def assert_bill(fleet: Fleet, job_id: str, bill: Path) -> str:
    """The endpoint's bill is the ledger, call by call, but for calls that are listed as lost."""
    billed = [json.loads(line) for line in bill.read_text().splitlines()]
    unseen = same_bill(fleet.engine, billed)
    paid = [Request.job_id == job_id, Request.state == "done"]
    assert fleet.count(Request, *paid) == DOCUMENTS, "a document was paid for twice"
    assert fleet.count(Request, Request.job_id == job_id, Request.state == "sent") == 0
    spent = total(fleet, Request.cost_microusd, *paid)
    assert spent == total(fleet, Usage.cost_microusd, Usage.job_id == job_id)
    assert spent == sum(line["cost_microusd"] for line in billed if line["call"] not in unseen)
    lost = total(fleet, Request.reserved_microusd, Request.job_id == job_id, Request.state == "lost")
    assert total(fleet, Budget.spent_microusd, Budget.job_id == job_id) == spent + lost
    assert total(fleet, Budget.reserved_microusd, Budget.job_id == job_id) == 0
    return f"{len(billed)} calls billed, {len(unseen)} of them listed as lost; "
