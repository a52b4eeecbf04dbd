"""What the command line shows: progress of a job, lists of jobs and models, downloads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from pipeline.accounting.figures import Summary
from pipeline.accounting.wording import counted
from pipeline.watching import Snapshot, StageProgress, watch

LINE_SECONDS = 10.0  # between lines of progress where there is no terminal to draw on

EXAMPLES = 5  # of documents without a result that are named
UNCUT = 10_000  # columns: a path is there to be copied, however narrow the terminal


def follow(engine: Engine, job_id: str, console: Console, *, check: Callable[[], None] = lambda: None) -> Snapshot:
    """Show progress until the job has ended; ``check`` is called with each look. Returns the last one."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            for shot in watch(engine, job_id):
                check()
                live.update(_bars(shot))
            return shot
    due = _now_and_then()
    for shot in watch(engine, job_id):
        check()
        if due():
            print_snapshot(shot, console)
    return shot


def _now_and_then() -> Callable[[], bool]:
    """Whether it is time for a line of progress: at once, and then every ``LINE_SECONDS``."""
    last = -LINE_SECONDS

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < LINE_SECONDS:
            return False
        last = time.monotonic()
        return True

    return due


def print_snapshot(shot: Snapshot, console: Console) -> None:
    """A job in one line, or two where it says why it stopped."""
    stages = "; ".join([*(_stage_text(stage) for stage in shot.stages), *_last_call(shot)])
    console.print(f"{shot.job_id} {shot.state}: {stages}", soft_wrap=True, markup=False)
    if shot.error:
        console.print(Text(shot.error, style="red"), soft_wrap=True)


def _stage_text(stage: StageProgress) -> str:
    left = f"{duration(stage.seconds_left)} left" if stage.seconds_left else ""
    done = f"{stage.kind} {stage.documents:,}/{counted(stage.total, 'document')}"
    return ", ".join(filter(None, (done, stage.doing, _rate(stage), left)))


def _rate(stage: StageProgress) -> str:
    """Nothing for a stage that is through: the rate of the last seconds would fall towards 0."""
    through = stage.documents >= stage.total
    return "" if through or not stage.tokens_per_second else f"{stage.tokens_per_second:,.0f} tokens/s"


def _last_call(shot: Snapshot) -> list[str]:
    """What a waiting user should know: at most one text."""
    if shot.last_call is None:
        return []
    call = shot.last_call
    where = f" ({call.url})" if call.url else ""
    return [f"last call: {call.error}{where} {call.seconds_ago:.0f} s ago"]


def _bars(shot: Snapshot) -> Group:
    table = Table.grid(padding=(0, 2))
    for stage in shot.stages:
        bar = Progress(BarColumn(bar_width=30), TaskProgressColumn())
        bar.add_task("", total=stage.total or 1, completed=stage.documents)
        left = f"{duration(stage.seconds_left)} left" if stage.seconds_left else ""
        done = f"{stage.documents:,}/{stage.total:,}"
        table.add_row(Text(stage.kind, style="bold"), bar, done, _rate(stage), left)
    head = Text(f"job {shot.job_id}: {shot.state}, {counted(shot.shards_working, 'shard')} in work")
    doing = (Text(f"{stage.kind}: {stage.doing}") for stage in shot.stages if stage.doing)
    return Group(head, table, *doing, *(Text(text, style="yellow") for text in _last_call(shot)))


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``, ``3700`` -> ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_examples(summary: Summary, console: Console) -> None:
    """Why documents gave no result: one example of each reason, with its file and line."""
    firsts = [(row.status, row.examples[0]) for row in summary.rejections if row.examples]
    for status, example in firsts[:EXAMPLES]:
        console.print(f"{status:<10} {example['source']}: {example['reason']}", soft_wrap=True, markup=False)
    if firsts and summary.state == "done":
        console.print(f"all        {summary.places.output}/rejections.parquet", soft_wrap=True, markup=False)


def print_jobs(rows: Sequence[Any], console: Console) -> None:
    """All jobs of a database as a table."""
    table = Table("job", "name", "state", "documents", "started", "output", box=None)
    for row in rows:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created_at))
        table.add_row(row.id, row.name, row.state, f"{row.documents:,}", started, Text(row.output))
    if rows:
        _print_uncut(table, console)
    else:
        console.print("no jobs yet: contextmill run JOBFILE")


def print_models(rows: Sequence[Any], console: Console) -> None:
    """Models by name as a table; what is wrong with one, and what to do about it, stands at the end of its line."""
    table = Table("model", "state", "size", "licence", "where", "", box=None)
    for row in rows:
        size = f"{max(1, row.bytes / 1e6):,.0f} MB" if row.bytes else ""
        table.add_row(Text(row.name), row.state, size, row.licence or "", Text(str(row.where)), Text(row.detail))
    _print_uncut(table, console)


def _print_uncut(table: Table, console: Console) -> None:
    Console(file=console.file, width=UNCUT).print(table)


@contextlib.contextmanager
def download_bar(name: str, console: Console) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar; the callback takes bytes done and bytes in all."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def measuring(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar, or where there is no terminal a line now and then: a call with what is done, of what, and what is next."""
    if not console.is_terminal:
        due = _now_and_then()

        def line(done: int, total: int, what: str) -> None:
            if due():
                console.print(f"{done} of {total} measured: {what}" if total else what, markup=False, soft_wrap=True)

        yield line
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total or None, description=escape(what))
