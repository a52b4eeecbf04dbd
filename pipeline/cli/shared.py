"""What the commands share: their common options, the two consoles, exit codes, and how they end in an error."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from schemas.settings import Settings

FAILURE, USAGE, DEAD, BUDGET = 1, 2, 3, 4
EXIT_CODES = """Exit codes: 0 done, 1 failure, 2 usage, 3 finished with dead documents, 4 budget reached."""
LOG_LEVELS = "DEBUG", "INFO", "WARNING", "ERROR"
MOST_WORKERS = 1_024
DEFAULT_OUTPUT = "runs"  # as schemas/job.py has it, which is not imported here: `--help` is to answer at once

JobFile = Annotated[Path, typer.Argument(help="The job file (TOML).", metavar="JOBFILE")]
JobId = Annotated[str, typer.Argument(help="A job's id, or how it begins.", metavar="JOB")]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Output folder or s3:// path; its contextmill.db is the default database."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Column = Annotated[
    str | None,
    typer.Option("--column", metavar="NAME", help="The column of the texts. Default: text, or a prompt's parts."),
]
Refine = Annotated[
    int, typer.Option("--refine", min=0, help="Most steps in which slots are fitted to their span first.")
]
Continuations = Annotated[
    int,
    typer.Option("--continuations", min=0, help="With --refine: fit to so many of the target's own, too; 16 are many."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: stages.0.rate=0.5; KEY= removes it.", metavar="KEY=VALUE"),
]
Input = Annotated[list[str] | None, typer.Option("--input", "-i", help="Read this instead of the job file's input.")]
Workers = Annotated[
    int | None, typer.Option("--workers", "-w", min=1, max=MOST_WORKERS, help="Worker processes; default 1.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only estimate tokens, money, time and memory.")]
Replace = Annotated[bool, typer.Option("--replace", help="Give what is made its name even where another has it.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def examples(*commands: str, then: str = "") -> str:
    """The end of a command's help: a command a line, each to be copied as it stands."""
    head = "Example:" if len(commands) == 1 else "Examples:"
    block = "\n".join([head, *(f"[cyan]{escape(command)}[/cyan]" for command in commands)])
    return f"{block}\n\n{then}" if then else block


def settings() -> Settings:
    """What the environment says (``CONTEXTMILL_*``)."""
    from schemas.settings import Settings

    return Settings()


def database(given: Settings, output: str | None, *, migrate: bool = False) -> tuple[Engine, Settings]:
    """The database: the one that is set, else the SQLite file in the output folder; and the settings that name it."""
    from pipeline.opening import open_database

    return open_database(given, output, migrate=migrate)


def parent(job_folder: str) -> str:
    """The output folder a job's own folder lies in, local or on s3."""
    return job_folder.rpartition("/")[0]


def follow_up(command: str, job_id: str, job_folder: str) -> str:
    """What to type next about a job: with its output folder, where nothing else would lead to its database."""
    folder = parent(job_folder)
    known = settings().database_url is not None or Path(folder).resolve() == Path(DEFAULT_OUTPUT).resolve()
    return f"contextmill {command} {job_id}" + ("" if known else f" -o {shlex.quote(folder)}")


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def print_error(message: str) -> None:
    """One error on standard error."""
    err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and leave."""
    print_error(message)
    raise typer.Exit(code)
