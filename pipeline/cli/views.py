"""The commands that show jobs and change nothing: status, report, export; and the dry run of ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.shared import (
    FAILURE,
    USAGE,
    JobId,
    Json,
    Output,
    database,
    err,
    examples,
    fail,
    out,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from pipeline.accounting.estimate import Estimate
    from pipeline.surveying import Survey
    from schemas.job import JobSpec
    from schemas.settings import Settings

commands = typer.Typer()


@commands.command(epilog=examples("contextmill status", "contextmill status 3f2a --watch -o runs/night"))
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

    if job is None and watch:
        fail("--watch follows one job: contextmill status JOB --watch", USAGE)
    engine, _ = database(settings(), output)
    if job is None:
        rows = list_jobs(engine)
        keys = "id", "name", "state", "documents", "output", "error"
        print_json([{key: getattr(row, key) for key in keys} for row in rows]) if json_ else print_jobs(rows, out)
        return
    job_id = find_job(engine, job).id
    if watch:
        follow(engine, job_id, err)
    shot = snapshot(engine, job_id)
    print_json(asdict(shot)) if json_ else print_snapshot(shot, out)


@commands.command(epilog=examples("contextmill report 3f2a", "contextmill report 3f2a --html report.html"))
def report(
    job: JobId,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML file.")] = None,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Say what a job did, saved and cost: on the terminal, as JSON, or as one self-contained HTML file."""
    from pipeline.cli.ending import print_job_summary
    from pipeline.storage.jobs import find_job

    engine, _ = database(settings(), output)
    job_id = find_job(engine, job).id
    if html is not None:
        from pipeline.reporting import write_report

        with interrupts.in_order():
            write_report(engine, job_id, html)
        if not json_:
            out.print(f"report: {html}", soft_wrap=True, markup=False)
    if html is None or json_:
        print_job_summary(engine, job_id, json_)


@commands.command(epilog=examples("contextmill export 3f2a night.jsonl"))
def export(
    job: JobId,
    to: Annotated[Path, typer.Argument(help="File to write: .jsonl, .csv or .parquet.", metavar="FILE")],
    output: Output = None,
) -> None:
    """Write a finished job's rows into one file."""
    from pipeline.exporting import export_rows
    from pipeline.storage.jobs import find_job

    engine, _ = database(settings(), output)
    row = find_job(engine, job)
    if row.state != "done":
        fail(f"job {row.id} is {row.state}: rows are exported once it is done", FAILURE)
    with interrupts.in_order():
        count = export_rows(row.output, to)
    out.print(f"{counted(count, 'row')}: {to}", soft_wrap=True, markup=False)


def print_dry_run(spec: JobSpec, given: Settings, json_: bool) -> None:
    """What a job would take, what its times rest on, and how many rows would be rejected."""
    from pipeline.surveying import estimate_job

    with interrupts.in_order():  # a packed Parquet file is unpacked beside the system's other temporary files
        found = estimate_job(spec, given)
    if json_:
        print_json(as_json(*found))
    else:
        print_forecast(*found)
    seen = found[1]
    if seen.rejected and not seen.documents:
        fail(f"no document would come through: all {seen.rejected} would be rejected", FAILURE)


def as_json(made: Estimate, seen: Survey, bases: dict[str, str]) -> dict[str, Any]:
    """A forecast for programs."""
    return {**made.to_json(), "rejected": seen.rejected, "basis": bases}


def print_forecast(made: Estimate, seen: Survey, bases: dict[str, str]) -> None:
    """A forecast for people."""
    from pipeline.accounting.console import print_estimate

    print_estimate(made, out)
    for kind, basis in bases.items():
        out.print(f"basis: {kind}: {escape(basis)}")
    if seen.rejected:
        rows = counted(seen.rejected, "row")
        out.print(f"{rows} would be rejected, the first: {escape(seen.first_rejection or '')}")
