"""The command `contextmill`: the one front door. Puts the parts together; nothing imports it.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.producer import Submission
    from schemas.job import JobSpec
    from schemas.settings import Settings

FAILURE, USAGE, DEAD, BUDGET = 1, 2, 3, 4
LOGLEVELS = "DEBUG", "INFO", "WARNING", "ERROR"

EXIT_CODES = """Exit codes: 0 done, 1 failure, 2 usage, 3 finished with dead documents, 4 budget reached."""

app = typer.Typer(
    name="contextmill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make long prompts cheap in bulk, and prove what it cost.\n\n"
    "A corpus is cut into shards; workers compress its prompts and let a target model answer; results land in Parquet "
    "and SQL with their tokens, seconds and money.\n\nStart here: [bold]contextmill run examples/gsm8k.toml[/bold]",
    epilog=EXIT_CODES,
)
models_app = typer.Typer(help="List, fetch and check the models on this machine.", no_args_is_help=False)
app.add_typer(models_app, name="models")

JobFile = Annotated[Path, typer.Argument(help="The job file (TOML).", metavar="JOBFILE")]
JobId = Annotated[str, typer.Argument(help="A job's id, or how it begins.", metavar="JOB")]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Output folder or s3:// path; its contextmill.db is the default database."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key: stages.0.rate=0.5", metavar="KEY=VALUE")]
Input = Annotated[list[str] | None, typer.Option("--input", "-i", help="Read this instead of the job file's input.")]
Workers = Annotated[int | None, typer.Option("--workers", "-w", min=1, help="Worker processes; default 1.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@app.command(epilog=EXIT_CODES)
def run(
    job_file: JobFile,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate tokens, money, time and memory.")] = False,
    json_: Json = False,
) -> None:
    """Run a job on this machine from start to end; the same command again goes on, or only reports.

    Starts a Redis-compatible server (unless CONTEXTMILL_BROKER_URL names one) and local workers, and stops them again.
    """
    spec, settings = _load(job_file, output, input_, sets), _settings()
    if dry_run:
        _dry_run(spec, settings, json_)
        return
    _check_hosted(spec, settings)
    _check_broker(settings)
    count = workers or settings.workers
    engine, settings = _open(settings, spec.output.path, migrate=True)
    _work_until_done(engine, settings, count, spec, job_id=None, json_=json_)


@app.command()
def submit(
    job_file: JobFile,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Hand a job to workers that run elsewhere (needs CONTEXTMILL_BROKER_URL), and return."""
    from dataclasses import asdict

    spec, settings = _load(job_file, output, input_, sets), _settings()
    if settings.broker_url is None:
        _fail("submit needs CONTEXTMILL_BROKER_URL, as the workers have it; `contextmill run` works here alone", USAGE)
    _check_broker(settings)
    engine, settings = _open(settings, spec.output.path, migrate=True)
    made = _submit(engine, settings, spec, workers or settings.workers, quiet=json_)
    if json_:
        _print_json(asdict(made))
    else:
        word = "submitted" if made.created else "is there already"
        follow = f"contextmill status {made.job_id} --watch"
        out.print(f"job [bold]{made.job_id}[/bold] {word}: {made.documents} documents. {follow}")


@app.command()
def worker(
    name: Annotated[str, typer.Option(help="Name of this worker; unique on its host.")] = "contextmill",
    queues: Annotated[str | None, typer.Option(help="Comma-separated; default: all, high priority first.")] = None,
    loglevel: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Work on shards until told to stop (CONTEXTMILL_BROKER_URL, CONTEXTMILL_DATABASE_URL). One per GPU.

    SIGTERM finishes the shard in hand, or hands it back before CONTEXTMILL_SOFT_SHUTDOWN_SECONDS are over.
    """
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"  # read by Celery when it is imported: SIGTERM then keeps the grace period
    settings = _settings()
    missing = [name for name in ("broker_url", "database_url") if getattr(settings, name) is None]
    if missing:
        _fail(f"a worker needs {' and '.join(f'CONTEXTMILL_{name.upper()}' for name in missing)}", USAGE)
    if loglevel.upper() not in LOGLEVELS:
        _fail(f"--loglevel {loglevel}: one of {', '.join(LOGLEVELS)}", USAGE)
    from pipeline.opening import address
    from workers.service import serve

    address(settings, "", may_create=False)  # refuses what is no database address, without repeating it

    serve(settings, name, queues.split(",") if queues else None, loglevel.upper())


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(help="A job's id, or how it begins; none lists all jobs.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Show how far jobs are."""
    from dataclasses import asdict

    from pipeline.display import follow, print_jobs, print_snapshot
    from pipeline.storage.jobs import find_job, list_jobs
    from pipeline.watching import snapshot

    engine, _ = _open(_settings(), output)
    if job is None:
        rows = list_jobs(engine)
        keys = "id", "name", "state", "documents", "output", "error"
        _print_json([{key: getattr(row, key) for key in keys} for row in rows]) if json_ else print_jobs(rows, out)
        return
    job_id = find_job(engine, job).id
    if watch:
        follow(engine, job_id, err)
    shot = snapshot(engine, job_id)
    _print_json(asdict(shot)) if json_ else print_snapshot(shot, out)


@app.command()
def resume(job: JobId, output: Output = None, workers: Workers = None, json_: Json = False) -> None:
    """Let a stopped or cancelled job go on from where it was; nothing is done or paid for twice.

    Without CONTEXTMILL_BROKER_URL it is worked on here, until it is done.
    """
    from pipeline.storage.jobs import find_job, resume_job

    engine, settings = _open(_settings(), output)
    row = find_job(engine, job)
    cut_off = _cut_off(engine, row)
    resumed = resume_job(engine, row.id)
    if not resumed and row.state == "done":
        if not json_:
            out.print(f"job {row.id} is done: nothing to resume")
        _finish(engine, row.id, json_)
    if settings.broker_url is not None:
        if cut_off is not None:
            _submit(engine, settings, cut_off, row.workers, quiet=json_)
        word = "goes on" if resumed else f"is {row.state}: nothing to resume"
        _print_json({"job_id": row.id, "resumed": resumed}) if json_ else out.print(f"job {row.id} {word}")
        return
    _work_until_done(engine, settings, workers or settings.workers, cut_off, job_id=row.id, json_=json_)


def _cut_off(engine: Engine, job: Any) -> JobSpec | None:
    """What a job that ended while it was being submitted still has to be submitted from; None for any other."""
    if job.submitted_at is not None:
        return None
    from pipeline.producer import existing_job
    from schemas.job import JobSpec

    spec = JobSpec.model_validate(job.spec)
    same = existing_job(engine, spec)
    if same is None or same.id != job.id:
        _fail(f"job {job.id} was cut off while its input was read, which has changed since: run it anew", FAILURE)
    return spec


@app.command()
def cancel(job: JobId, output: Output = None, json_: Json = False) -> None:
    """Stop a job; what is done stays, and `resume` goes on from there."""
    from pipeline.storage.jobs import cancel_job, find_job

    engine, _ = _open(_settings(), output)
    row = find_job(engine, job)
    cancelled = cancel_job(engine, row.id)
    word = "cancelled; its workers hand their shards back within seconds" if cancelled else f"is {row.state} already"
    _print_json({"job_id": row.id, "cancelled": cancelled}) if json_ else out.print(f"job {row.id} {word}")


@app.command("retry-dead")
def retry_dead_command(job: JobId, output: Output = None, workers: Workers = None, json_: Json = False) -> None:
    """Try the dead documents of a job again (those that failed by no fault of their own)."""
    from pipeline.storage.jobs import find_job, retry_dead

    engine, settings = _open(_settings(), output)
    job_id = find_job(engine, job).id
    count = retry_dead(engine, job_id, settings.max_attempts)
    if not json_:
        out.print(f"job {job_id}: {count or 'no'} dead documents{' are tried again' if count else ''}")
    if count and settings.broker_url is None:
        _work_until_done(engine, settings, workers or settings.workers, None, job_id=job_id, json_=json_)
    elif json_:
        _print_json({"job_id": job_id, "retried": count})


@app.command()
def report(
    job: JobId,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML file.")] = None,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Say what a job did, saved and cost: on the terminal, as JSON, or as one self-contained HTML file."""
    from pipeline.storage.jobs import find_job

    engine, _ = _open(_settings(), output)
    job_id = find_job(engine, job).id
    if html is not None:
        from pipeline.reporting import write_report

        write_report(engine, job_id, html)
        if not json_:
            out.print(f"report: {html}", soft_wrap=True)
    if html is None or json_:
        _print_summary(engine, job_id, json_)


@app.command()
def export(
    job: JobId,
    to: Annotated[Path, typer.Argument(help="File to write: .jsonl, .csv or .parquet.", metavar="FILE")],
    output: Output = None,
) -> None:
    """Write a finished job's rows into one file."""
    from pipeline.exporting import export_rows
    from pipeline.storage.jobs import find_job

    engine, _ = _open(_settings(), output)
    row = find_job(engine, job)
    if row.state != "done":
        _fail(f"job {row.id} is {row.state}: rows are exported once it is done", FAILURE)
    out.print(f"{export_rows(row.output, to)} rows: {to}")


@app.command()
def doctor(
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the database to this version's schema.")] = False,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Check this machine: versions, GPU, models, database, broker, disk. Says what to do about each fault."""
    from pipeline.doctor import examine
    from workers.doorbell import ping

    findings = examine(_settings(), output or "runs", migrate=migrate, ping=ping)
    if json_:
        _print_json([{"check": f.check, "ok": f.ok, "found": f.found} for f in findings])
    else:
        for finding in findings:
            mark = "[green]ok  [/green]" if finding.ok else "[red]bad [/red]"
            out.print(f"{mark} {finding.check:<10} {escape(finding.found)}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILURE)


@models_app.callback(invoke_without_command=True)
def models_list(context: typer.Context, json_: Json = False) -> None:
    """List the models this machine knows by name."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.display import print_models
    from pipeline.models import catalogue

    rows = catalogue(_settings())
    _print_json([_plain(row) for row in rows]) if json_ else print_models(rows, out)


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A bundled name or a hub id.")],
    source: Annotated[Path | None, typer.Option("--from", help="A GGUF file already on this machine.")] = None,
) -> None:
    """Fetch a model and make it ready to load."""
    from pipeline.display import download_bar
    from pipeline.models import pull

    with download_bar(name, err) as progress:
        ref = pull(name, _settings(), progress=progress, source=source)
    out.print(f"{ref.name}: {ref.folder} (sha256 {ref.digest[:16]})", soft_wrap=True)


@models_app.command("verify")
def models_verify(name: Annotated[str, typer.Argument(help="A model's name.")], json_: Json = False) -> None:
    """Read a model's files again and compare their digests."""
    from pipeline.display import print_models
    from pipeline.models import verify

    row = verify(name, _settings())
    _print_json(_plain(row)) if json_ else print_models([row], out)
    if row.state != "ready":
        raise typer.Exit(FAILURE)


def _load(job_file: Path, output: str | None, input_: list[str] | None, sets: list[str] | None) -> JobSpec:
    from pipeline.jobfile import load_job

    flags = list(sets or [])
    if output:
        flags.append(f"output.path={json.dumps(output)}")
    if input_:
        flags.append(f"input.path={json.dumps(input_)}")
    return load_job(job_file, flags)


def _settings() -> Settings:
    from schemas.settings import Settings

    return Settings()


def _open(settings: Settings, output: str | None, *, migrate: bool = False) -> tuple[Engine, Settings]:
    """The database: the one that is set, else the SQLite file in the output folder, brought up to date by itself."""
    from pipeline.opening import open_database

    return open_database(settings, output, migrate=migrate)


def _check_broker(settings: Settings) -> None:
    """Before anything is made: a broker that is set, and away, would leave the user waiting for nothing."""
    from workers.doorbell import ping

    if settings.broker_url is not None:
        ping(settings.broker_url.get_secret_value())


def _check_hosted(spec: JobSpec, settings: Settings) -> None:
    """Before anything is started: what would fail every paid call (no key, no price for a budget, no SDK)."""
    from schemas.stage import GenerateSpec

    for stage in spec.stages:
        if isinstance(stage, GenerateSpec) and stage.backend == "openai":
            from pipeline.generation.hosted import check

            check(stage, spec.target, settings.api_key)


def _submit(engine: Engine, settings: Settings, spec: JobSpec, workers: int, *, quiet: bool) -> Submission:
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
    with err.status("reading the corpus") if not quiet and err.is_terminal else contextlib.nullcontext() as shown:

        def progress(documents: int) -> None:
            if shown is not None:
                shown.update(f"reading the corpus: {documents:,} documents")

        return produce(
            engine,
            spec,
            doorbell,
            workers=workers,
            max_attempts=settings.max_attempts,
            estimator=estimator,
            progress=progress,
        )


def _work_until_done(
    engine: Engine, settings: Settings, workers: int, spec: JobSpec | None, *, job_id: str | None, json_: bool
) -> NoReturn:
    """Submit ``spec`` or take up ``job_id``, with workers of our own; then say how it ended."""
    from pipeline.display import follow
    from pipeline.producer import existing_job, raise_budget
    from pipeline.storage.jobs import find_job, resume_job
    from pipeline.storage.reaping import unring
    from pipeline.watching import ENDED
    from workers.embedded import Embedded

    if spec is not None and (found := existing_job(engine, spec)) is not None:
        job_id = found.id
        if found.stop_code == "budget" and raise_budget(engine, spec, job_id):
            resume_job(engine, job_id)
        elif found.state in ENDED:
            _report_existing(engine, found, json_)
    logs = Path(find_job(engine, job_id).output if job_id else spec.output.path if spec else ".")
    log_dir = Path("logs") if str(logs).startswith("s3:") else logs / "logs"
    if job_id is not None and settings.broker_url is None:
        unring(engine, job_id)  # an earlier run's broker ended with it
    with _interruptible(), Embedded(settings, workers, log_dir) as embedded:
        if spec is not None:
            job_id = _submit(engine, embedded.settings, spec, workers, quiet=json_).job_id
        assert job_id is not None
        follow(engine, job_id, err, check=embedded.check)
    _finish(engine, job_id, json_)


def _report_existing(engine: Engine, job: Any, json_: bool) -> NoReturn:
    if not json_:
        how = {"done": "nothing is done twice", "cancelled": f"contextmill resume {job.id} goes on"}
        hint = how.get(job.state, f"mend what is said below, then: contextmill resume {job.id}")
        out.print(f"This very job ran already (same input, same spec, same weights) and is {job.state}: {hint}.")
    _finish(engine, job.id, json_)


def _finish(engine: Engine, job_id: str, json_: bool) -> NoReturn:
    from pipeline.accounting.report import ReportMissing
    from pipeline.reporting import write_report

    try:
        write_report(engine, job_id)
    except ReportMissing as missing:
        err.print(escape(str(missing)))
    summary = _print_summary(engine, job_id, json_)
    if summary.state == "stopped":
        raise typer.Exit(BUDGET if summary.stop_code == "budget" else FAILURE)
    if summary.state != "done" or _came_to_nothing(summary):
        raise typer.Exit(FAILURE)
    raise typer.Exit(DEAD if summary.documents.dead else 0)


def _came_to_nothing(summary: Any) -> bool:
    """Whether every row was refused: said as the failure it is, for the nightly script that looks at nothing else."""
    numbers = summary.documents
    nothing = not (numbers.done or numbers.reused or numbers.dead) and bool(numbers.rejected)
    if nothing:
        err.print(f"[red]error:[/red] no document came through: all {numbers.rejected} were rejected")
    return nothing


def _print_summary(engine: Engine, job_id: str, json_: bool) -> Any:
    from pipeline.accounting.console import print_summary
    from pipeline.accounting.summary import summarise
    from pipeline.display import print_examples

    summary = summarise(engine, job_id)
    if json_:
        _print_json(summary.to_json())
    else:
        print_summary(summary, out)
        print_examples(summary, out)
    return summary


def _dry_run(spec: JobSpec, settings: Settings, json_: bool) -> None:
    from pipeline.accounting.console import print_estimate
    from pipeline.surveying import estimate_job

    made, seen = estimate_job(spec, settings)
    if json_:
        _print_json({**made.to_json(), "rejected": seen.rejected})
    else:
        print_estimate(made, out)
        if seen.rejected:
            out.print(f"{seen.rejected} rows would be rejected, the first: {escape(seen.first_rejection or '')}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM leave through the front: workers and server are stopped, and the job can go on later."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from here", FAILURE)


def _plain(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: str(item) if isinstance(item, Path) else item for key, item in asdict(value).items()}


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command; an error a person can act on is one sentence, not a traceback."""
    logging.basicConfig(level=os.environ.get("CONTEXTMILL_LOGLEVEL", "WARNING"), format="%(levelname)s %(message)s")
    try:
        app(standalone_mode=True)
    except Exception as error:
        from pipeline.errors import explain

        explained = explain(error)
        if explained is None:
            raise
        message, usage = explained
        err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
        sys.exit(USAGE if usage else FAILURE)


if __name__ == "__main__":
    main()
