"""The command `icae prompts`: rows to fine-tune on, from contexts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.fleet import Fleet
from pipeline.cli.shared import (
    DEAD,
    EXIT_CODES,
    FAILURE,
    USAGE,
    DryRun,
    Input,
    Json,
    Output,
    Sets,
    Workers,
    database,
    examples,
    fail,
    out,
    print_json,
    settings,
)
from pipeline.cli.teaching import Teaching

if TYPE_CHECKING:
    from pipeline.memory.contexts import Contexts
    from pipeline.memory.prompting import Row, Written
    from schemas.job import JobSpec

commands = typer.Typer()

File = Annotated[Path, typer.Argument(help="A job file (TOML) whose one stage is generate.", metavar="FILE")]
Rows = Annotated[Path, typer.Argument(help="Where the rows go (.jsonl).", metavar="ROWS")]
Specific = Annotated[int, typer.Option("--specific", min=0, max=100, help="Prompts that are written for each context.")]
General = Annotated[int, typer.Option("--general", min=0, max=5, help="Prompts that fit any: rephrase, summarise ...")]


@commands.command(
    epilog=examples(
        "contextmill icae prompts examples/icae-prompts.toml rows.jsonl --specific 2 --general 1",
        "contextmill icae prompts prompts.toml rows.jsonl -i texts.jsonl --dry-run",
        then=EXIT_CODES,
    )
)
def prompts(
    file: File,
    rows: Rows,
    specific: Specific = 10,
    general: General = 5,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Let a model write and answer prompts about each context, as rows that `icae finetune` learns from.

    Two jobs: the target of FILE writes prompts about the texts of its input,
    then answers them, each as its generate stage says (a hard budget holds for
    each job). ROWS is in PwC's format: input, prompt, answer. The same command
    goes on where it was stopped, and nothing is paid for twice.
    """
    from pipeline.cli.prompting_ahead import print_ahead
    from pipeline.cli.running import check_broker, check_hosted, load
    from pipeline.memory.contexts import contexts_of
    from pipeline.places import check_place
    from pipeline.stages import check, stage_hashes

    job, given = load(file, output, input_, sets), settings()
    if [stage.kind for stage in job.stages] != ["generate"]:
        kinds = ", ".join(stage.kind for stage in job.stages)
        fail(f'{file}: one stage of kind = "generate" is wanted here, not {kinds} (docs/memory.md)', USAGE)
    if not specific and not general:
        fail("nothing would be asked: --specific and --general are both 0", USAGE)
    if rows.suffix != ".jsonl":
        fail(f"{rows}: the rows go into a file whose name ends in .jsonl", USAGE)
    if any(Path(name).resolve() == rows.resolve() for name in job.input.path):
        fail(f"{rows} is what is read: name another file for the rows", USAGE)
    check(job)
    stage_hashes(job)  # a model that is not there is found now
    if not dry_run:
        check_place(rows)
        check_hosted(job, given)
        check_broker(given)
    with interrupts.in_order():
        contexts = contexts_of(job.input)
        if not contexts.texts:
            fail(f"no row of {', '.join(job.input.path)} holds a text{_first(contexts)}", FAILURE)
        if dry_run:
            print_ahead(job, given, contexts, specific, general, json_)
            return
    engine, opened = database(given, job.output.path, migrate=True)
    with Fleet(opened, workers or given.workers) as fleet:
        _Command(engine, fleet, json_, "rows", job, contexts, specific, general).run(rows)


def _first(contexts: Contexts) -> str:
    return f"; {contexts.bad} cannot be read, the first: {contexts.first_bad}" if contexts.bad else ""


@dataclass(frozen=True, slots=True)
class _Command(Teaching):
    """One run of the command."""

    job: JobSpec
    read: Contexts
    specific: int
    general: int

    def run(self, to: Path) -> None:
        """Both jobs, then the rows. Ends in ``typer.Exit`` where one fails, or has dead documents."""
        from pipeline.memory import prompting

        contexts = self.read.texts
        if self.read.bad:
            self.say(f"{counted(self.read.bad, 'row')} left out that cannot be read, the first: {self.read.first_bad}")
        asked = [*prompting.asks(contexts, self.specific)]
        codes: list[int] = []
        summaries: list[Any] = []
        written: dict[str, Written] = {}
        if asked:
            about = f"{counted(len(asked), 'prompt')} about {counted(len(contexts), 'context')}"
            self.say(f"1 of 2: {self.job.target.model} writes {about}")
            written = self._written("prompts", asked, {}, codes, summaries)
        found = [*prompting.prompts(contexts, written, self.specific, self.general)]
        if not found:
            fail("no prompt was written that is of use: name a better target, or raise max_new_tokens", FAILURE)
        self.say(f"2 of 2: {self.job.target.model} answers {counted(len(found), 'prompt')}")
        columns = {"contexts": "input", "question": "prompt"}
        answers = self._written("answers", found, columns, codes, summaries)
        self.fleet.stop()
        rows = [*prompting.answered(found, answers)]
        if not rows:
            why = f"no answer to {counted(len(found), 'prompt')} came to an end, and {to} is left as it was"
            fail(f"{why}: name a better target, or raise max_new_tokens", DEAD if DEAD in codes else FAILURE)
        building = to.with_name(f".{to.name}.building")
        building.write_bytes(prompting.lines(rows))
        building.replace(to)
        self._tell(to, len(contexts), len(asked), len(found), len(rows), summaries)
        if DEAD in codes:
            raise typer.Exit(DEAD)

    def _written(
        self, what: str, rows: Sequence[Row], columns: Mapping[str, str], codes: list[int], summaries: list[Any]
    ) -> dict[str, Written]:
        """What the target makes of these rows, by their ids."""
        ended = self.run_rows(self.job, what, rows, columns)
        codes.append(ended.code)
        summaries.append(ended.summary)
        return self.written(ended.job_id)

    def _tell(self, to: Path, contexts: int, asked: int, found: int, rows: int, summaries: list[Any]) -> None:
        specific = found - contexts * self.general
        if self.json:
            counts = {"contexts": contexts, "asked": asked, "specific": specific, "prompts": found, "rows": rows}
            print_json({"jobs": summaries, "rows": {"file": str(to), **counts}})
            return
        out.print(f"prompts   {specific} of {asked} are of use, and {found - specific} general ones", markup=False)
        out.print(
            f"rows      {rows} of {counted(found, 'prompt')} answered to an end: {to}", markup=False, soft_wrap=True
        )
