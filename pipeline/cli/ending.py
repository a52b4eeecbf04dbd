"""How a job ended: its summary, its report, and the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipeline.cli.shared import BUDGET, DEAD, FAILURE, err, follow_up, out, print_error, print_json

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.accounting.figures import Summary


def say_existing(job: Any, json_: bool) -> None:
    """Say that this very job has ended before, and how."""
    if not json_:
        hint = ": nothing is done twice" if job.state == "done" else ""
        out.print(f"This very job ran already (same input, same spec, same weights) and is {job.state}{hint}.")


def finish(engine: Engine, job_id: str, json_: bool) -> int:
    """Write the report and print the summary; the exit code says how the job ended."""
    from pipeline.accounting.report import ReportMissing
    from pipeline.reporting import write_report

    try:
        write_report(engine, job_id)
    except ReportMissing as missing:
        err.print(escape(str(missing)))
    return _code(print_job_summary(engine, job_id, json_))


def print_job_summary(engine: Engine, job_id: str, json_: bool) -> Summary:
    """Print what a job did, saved and cost."""
    from pipeline.accounting.console import print_summary
    from pipeline.accounting.summary import summarise
    from pipeline.display import print_examples

    summary = summarise(engine, job_id)
    if json_:
        print_json(summary.to_json())
    else:
        print_summary(summary, out)
        print_examples(summary, out)
        _print_next(summary)
    return summary


def _print_next(summary: Summary) -> None:
    """The command that goes on from here, where there is something left to do."""
    here = summary.job_id, summary.places.output
    if summary.stop_code == "budget":
        return  # the error says what to raise, and in which file
    if summary.state in ("stopped", "cancelled"):
        # Where the job file or the input is mended, `resume` would go on with the job as it was.
        first = "mend what is said above; then run the job file again, or, if it and its input are as they were: "
        first = first if summary.state == "stopped" else ""
        out.print(f"to go on   {first}{follow_up('resume', *here)}", markup=False, soft_wrap=True)
    elif summary.documents.dead:
        out.print(f"try again  {follow_up('retry-dead', *here)}", markup=False, soft_wrap=True)


def _code(summary: Summary) -> int:
    if summary.state == "stopped":
        return BUDGET if summary.stop_code == "budget" else FAILURE
    if summary.state != "done" or _came_to_nothing(summary):
        return FAILURE
    return DEAD if summary.documents.dead else 0


def _came_to_nothing(summary: Summary) -> bool:
    """Whether every row was refused: said as the failure it is, for the nightly script that looks at nothing else."""
    numbers = summary.documents
    nothing = not (numbers.done or numbers.reused or numbers.dead) and bool(numbers.rejected)
    if nothing:
        print_error(f"no document came through: all {numbers.rejected} were rejected")
    return nothing
