"""The command `tune-drafting`: what drafting is worth for a job on this machine, and what to write into its file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.shared import (
    FAILURE,
    USAGE,
    Input,
    JobFile,
    Json,
    Sets,
    err,
    examples,
    fail,
    out,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.generation.tuning import Measured, Tuned
    from schemas.document import Document
    from schemas.job import JobSpec
    from schemas.stage import GenerateSpec

commands = typer.Typer()

MOST_NEW = 128
"""New tokens of an answer by default, where the job allows more."""
LEFT_OUT = 5
"""Rows and documents without an answer that are named."""


@commands.command(
    "tune-drafting",
    epilog=examples(
        "contextmill tune-drafting job.toml",
        "contextmill tune-drafting job.toml --documents 64 --rows 1 --rows 64",
        "contextmill tune-drafting job.toml --runs 3 --json",
    ),
)
def tune_drafting(
    job_file: JobFile,
    input_: Input = None,
    sets: Sets = None,
    documents: Annotated[int, typer.Option("--documents", min=1, help="How many of the first to answer.")] = 8,
    rows: Annotated[
        list[int] | None,
        typer.Option("--rows", min=1, help="Documents at once; may be given several times. Default: all."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=2, help=f"Of each answer; default: the job's, at most {MOST_NEW}."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed runs of each plan, behind one to warm up.")] = 1,
    json_: Json = False,
) -> None:
    """Measure what drafting is worth for a job on this machine, and print the settings of the fastest plan.

    The job's first documents go through the stages before generate and are answered by one plan after the other; no job
    is made of it.
    """
    from pipeline.cli.running import load

    spec = load(job_file, None, input_, sets)
    index, generate = generate_stage(spec)
    limit = max_new_tokens or min(generate.max_new_tokens, MOST_NEW)
    asked = _Asked(spec, index, generate, limit, rows or [documents], runs)
    tuned = _tuned(asked, _read(spec, documents))
    print_json(_json(asked, tuned)) if json_ else _print(asked, tuned)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be measured: the job, its generate stage and where that stands, and how."""

    job: JobSpec
    index: int
    generate: GenerateSpec
    limit: int
    rows: list[int]
    runs: int


def generate_stage(spec: JobSpec) -> tuple[int, GenerateSpec]:
    """Where the stage stands that answers, and what it says. Ends in ``typer.Exit`` where nothing could be drafted."""
    from schemas.stage import GenerateSpec

    for index, stage in enumerate(spec.stages):
        if isinstance(stage, GenerateSpec):
            if stage.backend != "local":
                fail(f'stages.{index}: drafts need backend = "local": an endpoint drafts by itself, if at all', USAGE)
            return index, stage
    return fail("the job has no stage of kind generate: there is nothing to draft", USAGE)


def _read(spec: JobSpec, documents: int) -> list[Document]:
    from pipeline.surveying import first_documents

    with interrupts.in_order():  # a packed Parquet file is unpacked beside the system's other temporary files
        found, bad = first_documents(spec, documents)
    _say_left_out((row.source, row.reason) for row in bad)
    return found


def _tuned(asked: _Asked, documents: list[Document]) -> Tuned:
    """Here a signal ends the process at once: nothing has been started that would have to be stopped."""
    from pipeline.display import measuring
    from pipeline.generation.stage import Generate
    from pipeline.generation.tuning import prepare, tune
    from pipeline.models import ModelPool
    from pipeline.stages import Run

    given = settings()
    run = Run(ModelPool(limit=given.resident_models, settings=given))
    with measuring(err) as progress:
        progress(0, 0, f"{counted(len(documents), 'document')} through the stages before generate")
        going, refused = prepare(asked.job, asked.index, documents, run)
        _say_left_out((document.source, refusal.reason) for document, refusal in refused)
        if not going:
            fail("there is no document that the generate stage would answer", FAILURE)
        stage = Generate(asked.generate.model_copy(update={"max_new_tokens": asked.limit}), asked.job.target)
        rows = sorted({min(count, len(going)) for count in asked.rows})
        return tune(stage, going, rows, asked.runs, run, progress)


def _say_left_out(rows: Iterable[tuple[str, str]]) -> None:
    lines = [f"left out: {source}: {reason}" for source, reason in rows]
    more = [f"and {len(lines) - LEFT_OUT:,} more"] if len(lines) > LEFT_OUT else []
    for line in [*lines[:LEFT_OUT], *more]:
        err.print(line, markup=False, soft_wrap=True)


def _json(asked: _Asked, tuned: Tuned) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "documents": tuned.documents,
        "prompt_tokens": tuned.prompt_tokens,
        "max_new_tokens": asked.limit,
        "device": tuned.device,
        "dtype": asked.generate.dtype,
        "runs": asked.runs,
        "job_at_once": _at_once(asked, tuned),
        "measured": [_figures(one) for one in tuned.measured],
        "refused": [asdict(one) for one in tuned.refused],
        "fastest": [
            {"rows": rows, "plan": one.plan, "times": one.times, "settings": one.settings, "remove": _stale(asked, one)}
            for rows, one in tuned.fastest().items()
        ],
    }


def _figures(one: Measured) -> dict[str, Any]:
    figures = one.figures
    return {
        "plan": one.plan,
        "rows": figures.rows,
        "settings": one.settings,
        "tokens_per_second": figures.tokens_per_second,
        "times": one.times,
        "tokens_per_pass": figures.tokens_per_pass,
        "accepted": figures.accepted,
        "same_answers": one.same,
        "tokens": figures.tokens,
        "seconds": figures.seconds,
        "read_seconds": figures.read_seconds,
    }


def _at_once(asked: _Asked, tuned: Tuned) -> int:
    """About how many documents like these the job works on at once."""
    mean = tuned.prompt_tokens / tuned.documents + asked.generate.max_new_tokens
    return max(1, int(asked.generate.batch_tokens / mean))


def _stale(asked: _Asked, best: Measured) -> list[str]:
    """The keys of the job's own plan that the best does not have."""
    from pipeline.generation.tuning import own_plan

    return [key for key in own_plan(asked.generate) if key in asked.generate.model_fields_set - best.settings.keys()]


def _print(asked: _Asked, tuned: Tuned) -> None:
    from rich.console import Console

    from pipeline.display import UNCUT

    mean, machine = tuned.prompt_tokens / tuned.documents, f"{tuned.device}, {asked.generate.dtype}"
    prompts = f"{counted(tuned.documents, 'document')} of {mean:,.0f} tokens, up to {asked.limit} new ones each"
    out.print(f"{prompts}; {machine}", markup=False, soft_wrap=True)
    Console(file=out.file, width=UNCUT).print(_table(tuned))
    batch = f"batch_tokens = {asked.generate.batch_tokens}"
    out.print(f"the job works on about {_at_once(asked, tuned)} such documents at once ({batch})", soft_wrap=True)
    best = tuned.fastest()
    if not best:
        out.print("too little was written to tell which plan is fastest: --max-new-tokens, --documents, --runs")
    plans: dict[str, list[int]] = {}
    for rows, one in best.items():
        plans.setdefault(one.plan, []).append(rows)
    for name, counts in plans.items():
        out.print()
        _print_best(asked, name, [best[count] for count in counts])


def _table(tuned: Tuned) -> Table:
    """A line a plan; at the end of its line why it was not measured."""
    from rich.table import Table
    from rich.text import Text

    table = Table("at once", "plan", box=None)
    for heading in ("tokens/s", "times plain", "tokens a pass", "accepted", "same answers"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for one in tuned.measured:
        figures = one.figures
        speed = _number(figures.tokens_per_second, ",.1f"), _number(one.times, ".2f")
        drafts = f"{figures.tokens_per_pass:.2f}", _number(figures.accepted, ".0%")
        table.add_row(str(figures.rows), one.plan, *speed, *drafts, f"{one.same} of {tuned.documents}")
    for refused in tuned.refused:
        table.add_row("", refused.plan, *["–"] * 5, Text(" ".join(refused.reason.split())))
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _print_best(asked: _Asked, name: str, best: list[Measured]) -> None:
    from pipeline.generation.policy import GAIN
    from pipeline.generation.tuning import PLAIN

    rows = ", ".join(str(one.figures.rows) for one in best)
    times = ", ".join(f"{one.times:.2f}" for one in best)
    stale = _stale(asked, best[0])
    if name == PLAIN:
        said = f"plain decoding is fastest: no plan reaches {GAIN} times its speed"
    else:
        said = f"{name} is fastest, {times} times plain decoding; in the job file's [[stages]] of kind generate:"
    out.print(f"{rows} at once: {said}", markup=False, soft_wrap=True)
    for key, value in best[0].settings.items():
        out.print(f"{key} = {json.dumps(value, ensure_ascii=False)}", markup=False, soft_wrap=True)
    if stale:
        out.print(f"take out: {', '.join(stale)}", soft_wrap=True)
