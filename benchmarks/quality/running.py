"""Jobs on workers that stay up, so that models are loaded once for all of them. Run again, it goes on where it stopped:
a job that is done is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console
from sqlalchemy import Engine

from pipeline.display import follow
from pipeline.producer import submit
from pipeline.storage.jobs import find_job, resume_job
from pipeline.storage.reaping import unring
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from schemas.job import JobSpec
from schemas.settings import Settings
from workers.app import make_app
from workers.doorbell import CeleryDoorbell
from workers.embedded import Embedded


def database(out: Path) -> Engine:
    """The database of a folder of results, made where there is none."""
    engine = open_engine(_url(out))
    migrate(engine)
    return engine


def _url(out: Path) -> str:
    return f"sqlite:///{out.resolve() / 'contextmill.db'}"


@dataclass(frozen=True, slots=True)
class Runner:
    """Workers that wait for jobs."""

    engine: Engine
    embedded: Embedded
    console: Console

    def begin(self, spec: JobSpec) -> str:
        """Submit the job, or go on with it; returns its id. Many may wait at once, so that no worker idles."""
        doorbell = CeleryDoorbell(make_app(self.embedded.settings))
        job = submit(
            self.engine, spec, doorbell
        ).job_id  # shards for one worker: the larger they are, the fuller passes
        if find_job(self.engine, job).state not in ("done", "submitting"):
            resume_job(self.engine, job)
            unring(self.engine, job)  # an earlier run's broker ended with it
        return job

    def end(self, job: str, name: str) -> bool:
        """Wait until the job has ended. False where it was stopped, with the reason on the console."""
        if find_job(self.engine, job).state != "done":
            follow(self.engine, job, self.console, check=self.embedded.check)
        row = find_job(self.engine, job)
        if row.state != "done":
            self.console.print(f"{name} ended {row.state}: {row.error}", markup=False)
        return bool(row.state == "done")


@contextmanager
def runner(engine: Engine, out: Path, workers: int) -> Iterator[Runner]:
    """Workers for the length of the block; their logs lie in ``out``."""
    settings = Settings().model_copy(update={"database_url": SecretStr(_url(out))})
    with Embedded(settings, workers, out / "logs") as embedded:
        yield Runner(engine, embedded, Console(stderr=True, highlight=False))
