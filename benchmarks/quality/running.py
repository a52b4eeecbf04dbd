"""Jobs one after the other on workers that stay up, so that models are loaded once for all of them. Run again, it goes
on where it stopped: a job that is done is done."""

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

    def run(self, spec: JobSpec) -> str | None:
        """Bring the job to its end; returns its id, or None where it was stopped, with the reason on the console."""
        doorbell = CeleryDoorbell(make_app(self.embedded.settings))
        job = submit(self.engine, spec, doorbell, workers=self.embedded.workers).job_id
        if find_job(self.engine, job).state != "done":
            resume_job(self.engine, job)
            unring(self.engine, job)  # an earlier run's broker ended with it
            follow(self.engine, job, self.console, check=self.embedded.check)
        row = find_job(self.engine, job)
        if row.state != "done":
            self.console.print(f"{spec.name} ended {row.state}: {row.error}", markup=False)
            return None
        return job


@contextmanager
def runner(engine: Engine, out: Path, workers: int) -> Iterator[Runner]:
    """Workers for the length of the block; their logs lie in ``out``."""
    settings = Settings().model_copy(update={"database_url": SecretStr(_url(out))})
    with Embedded(settings, workers, out / "logs") as embedded:
        yield Runner(engine, embedded, Console(stderr=True, highlight=False))
