"""All commands together, and what becomes of their errors."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import typer

from pipeline.cli import aligning, comparing, distilling, icae, interrupts, jobs, machine, showing, tuning, views
from pipeline.cli.shared import EXIT_CODES, FAILURE, LOG_LEVELS, USAGE, err, print_error

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
app.add_typer(jobs.commands)
app.add_typer(aligning.commands)
app.add_typer(distilling.commands)
app.add_typer(icae.commands, name="icae")
app.add_typer(tuning.commands)
app.add_typer(views.commands)
app.add_typer(showing.commands)
app.add_typer(comparing.commands)
app.add_typer(machine.commands)
app.add_typer(machine.models, name="models")


def call() -> None:
    """Run the command the user typed, to its exit code. Ends in ``SystemExit`` always."""
    try:
        _set_up_logging()
        app(standalone_mode=True)
    except interrupts.Interrupted:
        _leave_interrupted()
    except Exception as error:
        if interrupts.raised():
            _leave_interrupted()
        from pipeline.errors import explain

        explained = explain(error)
        if explained is None:  # a bug: its traceback is what we need
            raise
        message, usage = explained
        print_error(message)
        sys.exit(USAGE if usage else FAILURE)
    finally:
        interrupts.ignore()
        _flush()


def _set_up_logging() -> None:
    level = os.environ.get("CONTEXTMILL_LOGLEVEL", "WARNING").upper()
    if level not in LOG_LEVELS:
        print_error(f"CONTEXTMILL_LOGLEVEL={level}: one of {', '.join(LOG_LEVELS)}")
        sys.exit(USAGE)
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")


def _leave_interrupted() -> NoReturn:
    err.print(interrupts.line(), markup=False, soft_wrap=True)
    sys.exit(interrupts.EXIT)


def _flush() -> None:
    """Write what is left now: at the interpreter's own end, a reader that has gone (`| head`) makes a traceback."""
    if sys.stdout is None:  # closed by whoever started us (`>&-`)
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
