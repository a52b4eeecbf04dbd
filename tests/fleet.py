"""Real workers on a real broker and database, to be killed by tests, and what must hold of a job afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Engine, func, select

from pipeline.producer import Submission, submit
from pipeline.storage.schema import migrate
from pipeline.storage.shards import PUBLISH
from pipeline.storage.sql import open_engine
from schemas.job import JobSpec
from schemas.settings import Settings
from schemas.tables import Job, Shard
from workers.app import RUN_SHARD, make_app, queue_name
from workers.doorbell import CeleryDoorbell, backlog, broker_client

QUICK = {"lease_seconds": 3.0, "renew_seconds": 1.0, "reap_seconds": 1.0, "visibility_timeout": 5.0}
"""Timings for tests: what takes a minute in production takes a second or two."""
PATIENT = {**QUICK, "lease_seconds": 60.0}
"""The same where no lease is to run out: on a busy machine a renewal may come seconds late."""


def wait_until(condition: Callable[[], bool], seconds: float, what: str = "") -> float:
    """Seconds until ``condition`` held; fails the test after ``seconds``."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


@dataclass
class Worker:
    """A ``contextmill worker`` process (Celery's parent) and its one child, which does the work."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def child(self) -> int | None:
        """The child's process id, once there is one."""
        try:
            children = psutil.Process(self.process.pid).children()
            found = [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
        except psutil.NoSuchProcess:
            return None
        return found[0] if found else None

    def kill_child(self) -> bool:
        """SIGKILL to the child; False where there is none just now."""
        pid = self.child
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the parent, as if its machine's init had done it."""
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float) -> float:
        """SIGTERM; seconds until it was gone. One that stays says where its threads are, in its log."""
        self.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(seconds)
            raise
        return time.monotonic() - began


@dataclass
class Fleet:
    """Workers, a broker and a database that belong to one test. ``timings`` are settings of every worker."""

    folder: Path
    database_url: str
    broker_url: str
    timings: Mapping[str, float] = field(default_factory=lambda: QUICK)
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    entry: tuple[str, ...] = ("-m", "pipeline.cli", "worker")

    def __post_init__(self) -> None:
        self.engine: Engine = open_engine(self.database_url)
        migrate(self.engine)
        secrets = {"database_url": SecretStr(self.database_url), "broker_url": SecretStr(self.broker_url)}
        self.settings = Settings(**secrets, **self.timings)  # type: ignore[arg-type]
        self.app: Celery = make_app(self.settings)
        self.client: redis.Redis = broker_client(self.app)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                child = worker.child
                worker.kill()
                if child is not None and psutil.pid_exists(child):
                    os.kill(child, signal.SIGKILL)
        self.client.close()
        self.app.close()
        self.engine.dispose()

    def start_worker(
        self, *, timings: Mapping[str, float] | None = None, prefix: Sequence[str] = (), **environment: str
    ) -> Worker:
        """One more worker process, behind the words ``prefix``. It takes seconds until it works."""
        number = len(self.workers)
        made = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **self.environment, **environment}
        for name, value in {**self.timings, **(timings or {})}.items():
            made[f"CONTEXTMILL_{name.upper()}"] = str(value)
        made |= {"CONTEXTMILL_DATABASE_URL": self.database_url, "CONTEXTMILL_BROKER_URL": self.broker_url}
        log = self.folder / f"worker-{number}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*prefix, sys.executable, *self.entry, "--name", f"w{number}"], env=made, stdout=out, stderr=out,
                cwd=Path(__file__).parent.parent,
            )  # fmt: skip
        self.workers.append(Worker(process, log))
        return self.workers[-1]

    def submit(self, spec: JobSpec, workers: int = 1) -> Submission:
        """Submit a job from this process, as ``contextmill submit`` does."""
        doorbell = CeleryDoorbell(self.app)
        return submit(self.engine, spec, doorbell, workers=workers, max_attempts=self.settings.max_attempts)

    def ring(self, job_id: str, shard_id: str) -> None:
        """Deliver a shard's message once more."""
        with self.engine.connect() as connection:
            row = connection.execute(select(Job.spec, Job.id).where(Job.id == job_id)).one()
        kinds = [*(entry["kind"] for entry in row.spec["stages"]), PUBLISH]
        stage = len(kinds) - 1 if shard_id == PUBLISH else int(shard_id.partition("-")[0])
        queue = queue_name(kinds[stage], row.spec["priority"])
        self.app.send_task(RUN_SHARD, args=(job_id, shard_id), queue=queue, routing_key=queue, retry=False)

    def job(self, job_id: str) -> Any:
        """The job's row."""
        with self.engine.connect() as connection:
            return connection.execute(select(Job).where(Job.id == job_id)).one()

    def shards(self, job_id: str, *states: str) -> list[Any]:
        """The job's shards, of these states or all."""
        query = select(Shard).where(Shard.job_id == job_id)
        with self.engine.connect() as connection:
            return list(connection.execute(query.where(Shard.state.in_(states)) if states else query))

    def count(self, table: Any, *where: Any) -> int:
        """Rows of a table."""
        with self.engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())

    def wait(self, job_id: str, seconds: float, *, state: str = "done") -> float:
        """Seconds until the job is in ``state``."""
        return wait_until(lambda: self.job(job_id).state == state, seconds, f"{job_id} {state}, {self.job(job_id)}")

    def drained(self) -> bool:
        """Whether the broker holds no message, waiting or in hand."""
        return backlog(self.client) == 0

    def logs(self) -> str:
        """What all workers said."""
        return "\n".join(worker.log.read_text(errors="replace") for worker in self.workers)


def write_corpus(path: Path, number: int, text: Callable[[int], str] = "document number {}".format) -> Path:
    """A JSONL file of ``number`` documents with ids ``d0`` and so on."""
    with path.open("w") as file:
        for index in range(number):
            file.write(json.dumps({"id": f"d{index}", "text": text(index)}) + "\n")
    return path


def job_spec(corpus: Path, output: Path, *stages: Mapping[str, Any], **more: Any) -> JobSpec:
    """A job over ``corpus``; the default is one ``copy`` stage in shards of about ten documents."""
    made = stages or ({"kind": "copy", "seconds_per_shard": 1e-5},)
    return JobSpec.model_validate(
        {"input": {"path": str(corpus)}, "output": {"path": str(output)}, "stages": list(made), **more}
    )


def parquet_files(folder: Path) -> Iterator[Path]:
    """The part files below ``folder``, in order."""
    yield from sorted(folder.glob("*.parquet"))
