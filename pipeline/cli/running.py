"""A job from its file to its end: checks first, then submission, then workers of our own until it is done."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.ending import say_existing
from pipeline.cli.shared import FAILURE, err, fail

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.cli.fleet import Fleet
    from pipeline.producer import Identity, Submission
    from schemas.align_file import AlignFile
    from schemas.distill_file import DistillFile
    from schemas.job import JobSpec
    from schemas.settings import Settings


def load(job_file: Path, output: str | None, input_: list[str] | None, sets: list[str] | None) -> JobSpec:
    """The job file under the flags that override it."""
    from pipeline.jobfile import load_job

    return load_job(job_file, _flags(output, input_, sets))


def load_align(file: Path, output: str | None, input_: list[str] | None, sets: list[str] | None) -> AlignFile:
    """The alignment file under the flags that override it."""
    from pipeline.jobfile import load
    from schemas.align_file import AlignFile

    return load(file, AlignFile, _flags(output, input_, sets))


def load_distill(file: Path, output: str | None, input_: list[str] | None, sets: list[str]) -> DistillFile:
    """The job file under the flags that override it, which also say how to distill."""
    from pipeline.jobfile import load
    from schemas.distill_file import DistillFile

    return load(file, DistillFile, _flags(output, input_, sets))


def _flags(output: str | None, input_: list[str] | None, sets: list[str] | None) -> list[str]:
    flags = list(sets or [])
    if output is not None:
        flags.append(f"output.path={json.dumps(output)}")
    if input_:
        flags.append(f"input.path={json.dumps(input_)}")
    return flags


def check_broker(settings: Settings) -> None:
    """Before anything is made: a broker that is set, and away, would leave the user waiting for nothing."""
    from workers.doorbell import ping

    if settings.broker_url is not None:
        ping(settings.broker_url.get_secret_value())


def check_hosted(spec: JobSpec, settings: Settings) -> None:
    """Before anything is started: what would fail every paid call (no key, no price for a budget, no SDK)."""
    from schemas.stage import GenerateSpec

    for stage in spec.stages:
        if isinstance(stage, GenerateSpec) and stage.backend == "openai":
            from pipeline.generation.hosted import check

            check(stage, spec.target, settings.api_key)


def submit(
    engine: Engine, settings: Settings, spec: JobSpec, workers: int, *, quiet: bool, identity: Identity | None = None
) -> Submission:
    """Read the corpus into shards and ring for each; ``identity`` spares reading it once more for its digest."""
    from pipeline.accounting.estimate import estimate
    from pipeline.accounting.speeds import measured
    from pipeline.producer import submit as produce
    from pipeline.stages import stage_hashes
    from workers.app import make_app
    from workers.doorbell import CeleryDoorbell

    def estimator(documents: int, characters: int, sample: Any) -> dict[str, Any]:
        known = measured(engine, stage_hashes(spec))
        return estimate(spec, documents, characters, sample=sample, measured=known, settings=settings).to_json()

    doorbell = CeleryDoorbell(make_app(settings))
    with _reading(quiet) as progress:
        return produce(
            engine, spec, doorbell, workers=workers, max_attempts=settings.max_attempts, estimator=estimator,
            progress=progress, identity=identity,
        )  # fmt: skip


def run_job(engine: Engine, fleet: Fleet, spec: JobSpec, json_: bool) -> str:
    """The job of ``spec`` from wherever it stands to its end, unless it has ended; its id."""
    from pipeline.producer import existing_job, identify, raise_budget, retune
    from pipeline.storage.jobs import resume_job
    from pipeline.watching import ENDED
    from schemas.align import WHOLE_CORPUS

    with _reading(json_):
        identity = identify(spec)
    found = existing_job(engine, identity)
    if found is not None:
        if found.stop_code == "budget" and raise_budget(engine, spec, found.id):
            retune(engine, spec, found.id)
            resume_job(engine, found.id)
        elif found.stop_code == "error":  # a device that is not there, a full disk: mended, or it stops again
            anew = ", with the new settings of the job file" if retune(engine, spec, found.id) else ""
            err.print(f"job {found.id} had stopped and goes on{anew}", markup=False, soft_wrap=True)
            resume_job(engine, found.id)
        elif found.state == "done" and resume_job(engine, found.id):
            said = f"{found.output}/data is gone: it is made again from what is beside it"
            err.print(said, markup=False, soft_wrap=True)
        elif found.state in ENDED:
            say_existing(found, json_)
            return identity.job_id
        elif retune(engine, spec, found.id):  # it was interrupted, perhaps for their sake
            err.print(f"job {found.id} goes on with the new settings of the job file", markup=False, soft_wrap=True)
    model = None if any(stage.kind in WHOLE_CORPUS for stage in spec.stages) else spec.target.model
    work_until_done(engine, fleet, identity.job_id, spec.output.path, json_, unread=(spec, identity), model=model)
    return identity.job_id


def cut_off(job: Any) -> tuple[JobSpec, Identity] | None:
    """What a job that ended while it was being submitted still has to be submitted from; None for any other."""
    if job.submitted_at is not None:
        return None
    from pipeline.producer import identify
    from schemas.job import JobSpec

    spec = JobSpec.model_validate(job.spec)
    identity = identify(spec)
    if identity.job_id != job.id:
        fail(f"job {job.id} was cut off while its input was read, which has changed since: run it anew", FAILURE)
    return spec, identity


def work_until_done(
    engine: Engine, fleet: Fleet, job_id: str, output: str, json_: bool,
    *, unread: tuple[JobSpec, Identity] | None = None, model: str | None = None,
) -> None:  # fmt: skip
    """Work on a job with workers of our own, who stay only where it is done, for the next one of the same ``model``.

    ``unread`` is what it has to be submitted from, where it is not yet, or only in part.
    """
    from pipeline.display import follow
    from pipeline.producer import SubmissionStoppedError
    from pipeline.storage.reaping import unring

    if fleet.settings.broker_url is None:
        unring(engine, job_id)  # an earlier run's broker ended with it
    embedded = fleet.started(output, model)
    if unread is not None:
        spec, identity = unread
        with contextlib.suppress(SubmissionStoppedError):  # quick workers reach a budget: ``finish`` says so
            submit(engine, embedded.settings, spec, fleet.workers, quiet=json_, identity=identity)

    def check() -> None:
        interrupts.check()
        embedded.check()

    shot = follow(engine, job_id, err, check=check)
    if model is None or shot.state != "done":  # one that was stopped may still be worked on, and what it did be told
        fleet.stop()


@contextlib.contextmanager
def _reading(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows that the corpus is being read, and how far: a call with the number of documents."""
    shown = None if quiet or not err.is_terminal else err.status("reading the corpus")

    def progress(documents: int) -> None:
        interrupts.check()
        if shown is not None:
            shown.update(f"reading the corpus: {counted(documents, 'document')}")

    with shown or contextlib.nullcontext():
        yield progress
