"""The command that sets evaluated jobs beside each other: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import interrupts
from pipeline.cli.shared import Json, Output, database, examples, out, print_json, settings

commands = typer.Typer()

Jobs = Annotated[
    list[str],
    typer.Argument(help="Jobs by their id, or how it begins; one rate of a job as JOB@RATE.", metavar="JOB..."),
]
Baseline = Annotated[
    str | None, typer.Option("--baseline", "-b", help="The job to set the others against; default: the first.")
]


@commands.command(epilog=examples("contextmill compare 3f2a 77c1", "contextmill compare 77c1@0.5 90de -b 3f2a --json"))
def compare(
    jobs: Jobs,
    baseline: Baseline = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write tables and plots as one HTML file.")] = None,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Set evaluated jobs over the same questions beside each other: tokens, cost, scores, paired differences."""
    from pipeline.evaluation.comparing import compare as compare_jobs
    from pipeline.evaluation.display import print_comparison

    engine, _ = database(settings(), output)
    with interrupts.in_order():
        found = compare_jobs(engine, jobs, baseline)
        if html is not None:
            from pipeline.accounting.report import render_comparison
            from pipeline.reporting import write_whole

            write_whole(html, render_comparison(found).encode())
    if json_:
        print_json(found.to_json())
        return
    print_comparison(found, out)
    if html is not None:
        out.print(f"report: {html}", soft_wrap=True, markup=False)
