"""The command that sets evaluated jobs beside each other: compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import interrupts
from pipeline.cli.fleet import Fleet
from pipeline.cli.judging import Judge, Most
from pipeline.cli.shared import (
    USAGE,
    DryRun,
    Json,
    Output,
    Workers,
    database,
    examples,
    fail,
    out,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.evaluation.comparing import Comparison, Match
    from schemas.job import JobSpec
    from schemas.settings import Settings

commands = typer.Typer()

Jobs = Annotated[
    list[str],
    typer.Argument(help="Jobs by their id, or how it begins; one rate of a job as JOB@RATE.", metavar="JOB..."),
]
Baseline = Annotated[
    str | None, typer.Option("--baseline", "-b", help="The job to set the others against; default: the first.")
]


@commands.command(
    epilog=examples(
        "contextmill compare 3f2a 77c1",
        "contextmill compare 77c1@0.5 90de -b 3f2a --json",
        "contextmill compare 3f2a 77c1 --judge examples/judge.toml --most 100",
    )
)
def compare(
    jobs: Jobs,
    baseline: Baseline = None,
    judge: Judge = None,
    most: Most = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write tables and plots as one HTML file.")] = None,
    output: Output = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Set evaluated jobs over the same questions beside each other: tokens, cost, scores, paired differences.

    With --judge a model reads each two answers to a question, in both orders:
    one wins where it is preferred in both, else they are level. The judge is a
    job of its own: it goes on where it was stopped, keeps its budget (exit code
    4), and is asked nothing twice. --dry-run says what it would cost.
    """
    from pipeline.cli.judging import load_model
    from pipeline.evaluation.comparing import compared, lined_up

    given = settings()
    if judge is None and (dry_run or most is not None):
        fail(f"{'--dry-run' if dry_run else '--most'} is about what a judge is asked: name one by --judge", USAGE)
    asked = None if judge is None else load_model(judge, "a judge", output, given, asks=not dry_run)
    engine, opened = database(given, output, migrate=asked is not None and not dry_run)
    code, more = 0, dict[str, Any]()
    with interrupts.in_order():
        matches = lined_up(engine, jobs, baseline)
        found = compared(matches)
    if asked is not None:
        if dry_run:
            _print_ahead(asked, given, matches, most, json_)
            return
        if html is not None:
            _check(html)
        found, more, code = _judged(engine, opened, workers, json_, asked, found, matches, most)
    with interrupts.in_order():
        _tell(found, more, html, json_)
    if code:
        raise typer.Exit(code)


def _print_ahead(judge: JobSpec, given: Settings, matches: list[Match], most: int | None, json_: bool) -> None:
    from pipeline.cli.judging import all_pairs, print_ahead

    with interrupts.in_order():
        print_ahead(judge, given, all_pairs(matches, most), json_)


def _check(html: Path) -> None:
    """Before a judge is paid."""
    from pipeline.places import check_place

    check_place(html)


def _judged(
    engine: Engine, given: Settings, workers: int | None, json_: bool,
    judge: JobSpec, found: Comparison, matches: list[Match], most: int | None,
) -> tuple[Comparison, dict[str, Any], int]:  # fmt: skip
    """With its verdicts, what programs are told besides, and the exit code."""
    from pipeline.cli.judging import Judging, all_pairs

    with Fleet(given, workers or given.workers) as fleet:
        command = Judging(engine, fleet, json_, "comparison", judge)
        found, summary, code = command.judged(found, all_pairs(matches, most))
    return found, {"jobs": [summary] if summary else []}, code


def _tell(found: Comparison, more: dict[str, Any], html: Path | None, json_: bool) -> None:
    from pipeline.evaluation.display import print_comparison

    if html is not None:
        from pipeline.accounting.report import render_comparison
        from pipeline.reporting import write_whole

        write_whole(html, render_comparison(found).encode())
    if json_:
        print_json({**found.to_json(), **more})
        return
    print_comparison(found, out)
    if html is not None:
        out.print(f"report: {html}", soft_wrap=True, markup=False)
