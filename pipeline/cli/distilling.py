"""The command `distill`: a job's target answers, a small model learns to draft for it, and gets a name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli.fleet import Fleet
from pipeline.cli.shared import (
    DEAD,
    EXIT_CODES,
    FAILURE,
    USAGE,
    DryRun,
    Input,
    JobFile,
    Json,
    Output,
    Replace,
    Sets,
    Workers,
    database,
    err,
    examples,
    fail,
    out,
    print_json,
    settings,
)
from pipeline.cli.teaching import Teaching
from pipeline.cli.tuning import generate_stage

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.distilled import Figures
    from schemas.distill_file import DistillFile
    from schemas.settings import Settings
    from schemas.stage import GenerateSpec

commands = typer.Typer()

LEAST = 2
FEW = 200
"""Answers from which little is learned that holds for other prompts."""

Name = Annotated[str, typer.Argument(help="What the drafter will be called.", metavar="NAME")]
Layers = Annotated[
    int | None, typer.Option("--layers", min=1, help="Begin from so many layers of the target, evenly spread.")
]
Drafter = Annotated[
    str | None, typer.Option("--drafter", help="Begin from this small model of the target's vocabulary.")
]


@commands.command(
    epilog=examples(
        "contextmill distill job.toml swift --layers 8",
        "contextmill distill job.toml swift --layers 8 -i prompts.jsonl --set distill.epochs=5",
        "contextmill distill job.toml coder --drafter Qwen/Qwen2.5-Coder-0.5B-Instruct",
        then=EXIT_CODES,
    )
)
def distill(
    job_file: JobFile,
    name: Name,
    layers: Layers = None,
    drafter: Drafter = None,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    replace: Replace = False,
    json_: Json = False,
) -> None:
    """Train a drafter for a job's target on the target's own answers, and say what share of its drafts are accepted.

    The job is run first, unless it has been. Then a job of its own trains a shallow copy of the target, or a model that
    you name; --set distill.KEY=VALUE says how (docs/generation.md). The same command goes on where it was stopped.

    Afterwards write drafters = ["NAME"] in the job's generate stage: answers stay the same, and are there sooner where
    enough drafts are accepted (tune-drafting says).
    """
    from pipeline.cli.running import check_broker, load_distill

    spec, given = load_distill(job_file, output, input_, _sets(sets, layers, drafter)), settings()
    _, answers = generate_stage(spec)
    if dry_run:
        from pipeline.cli.views import print_dry_run

        print_dry_run(spec.job, given, json_)
        return
    check_broker(given)
    recipe = _recipe(spec, answers, name, given, replace)
    engine, opened = database(given, spec.output.path, migrate=True)
    with Fleet(opened, workers or given.workers) as fleet:
        _Command(engine, fleet, json_, "drafter", spec, answers, name).run(recipe)


def _sets(sets: list[str] | None, layers: int | None, drafter: str | None) -> list[str]:
    given = [f"distill.{key}={json.dumps(value)}" for key, value in (("layers", layers), ("drafter", drafter)) if value]
    if not given and not any(one.startswith("distill.") for one in sets or ()):
        fail("what does the drafter begin from? --layers N (of the target), or --drafter NAME (a small model)", USAGE)
    return [*(sets or []), *given]


def _recipe(spec: DistillFile, answers: GenerateSpec, name: str, given: Settings, replace: bool) -> str:
    """Says what will be trained on whose answers, and raises what would fail it: a drafter that cannot draft for this
    target, a name that is taken. Reads the whole input and the models' digests."""
    from pipeline.models import distilled
    from pipeline.producer import identify
    from pipeline.stages import build, check
    from schemas.job import digest

    distilled.check_word(name)  # which is to be a job's name, too
    training = spec.training_job(name, answers, "answers")
    check(training)
    made_by = [identify(spec.job).job_id, training.stages[0].output_settings(), build(training, 0).identity()]
    recipe = digest(made_by)
    distilled.check_name(name, given.cache, recipe, replace=replace)
    return recipe


@dataclass(frozen=True, slots=True)
class _Command(Teaching):
    """One run of the command."""

    spec: DistillFile
    answers: GenerateSpec
    name: str

    def run(self, recipe: str) -> None:
        """Both jobs, then the drafter into the store. Ends in ``typer.Exit`` where one fails."""
        from pipeline.producer import identify

        target, distill = self.spec.target.model, self.spec.distill
        self.say(f"1 of 2: answers of {target}")
        code, answered = self.run_job(self.spec.job)
        path, pairs = self.gather([self.spec.job], self.spec.output.path, self.name, self._end())
        _check_enough(pairs)
        self.say(
            f"2 of 2: drafts are learned from {counted(pairs, 'answer')}, beginning from {distill.beginning(target)}"
        )
        training = self.spec.training_job(self.name, self.answers, path)
        code_of_training, trained = self.run_job(training)
        self._install(identify(training).job_id, recipe, [answered, trained])
        if DEAD in (code, code_of_training):
            raise typer.Exit(DEAD)

    def _end(self) -> str:
        """What stands behind answers that the target ended. Nothing where they may have ended in a stop string."""
        from pipeline.generation.prompts import PromptEncoder
        from pipeline.models import load_tokenizer

        if self.answers.stop:
            return ""
        name = self.spec.target.model
        return PromptEncoder(name, load_tokenizer(name, self.fleet.settings), 2, self.answers).end

    def _install(self, job_id: str, recipe: str, summaries: list[Any]) -> None:
        from pipeline.alignment.distilling import MODEL
        from pipeline.models import adapters, distilled
        from pipeline.storage.jobs import find_job

        with adapters.at_hand(f"{find_job(self.engine, job_id).output}/distill/{MODEL}") as folder:
            made = distilled.install(folder, self.name, self.fleet.settings.cache, recipe)
        figures = distilled.read_figures(made)
        if self.json:
            print_json({"jobs": summaries, "drafter": {"name": self.name, "folder": str(made), **asdict(figures)}})
            return
        _print(self.name, made, figures)


def _check_enough(pairs: int) -> None:
    if pairs < LEAST:
        few = f"{counted(pairs, 'answer')}: too few to learn from and to measure by"
        fail(f"{few}; give the job more documents (-i)", FAILURE)
    if pairs < FEW:
        err.print(f"{pairs} answers teach little: some hundred, better some thousand, are worth training on (-i)")


def _print(name: str, folder: Path, figures: Figures) -> None:
    (was, now), (before, after) = figures.nats, figures.agreement
    out.print(f"{counted(figures.answers, 'held-out answer')}: {was:.3f} -> {now:.3f} nats a token", markup=False)
    out.print(f"their likeliest tokens: {before:.1%} -> {after:.1%}", markup=False)
    drafted = counted(figures.rounds, "token")
    said = f"{figures.answered} of them answered anew, {drafted} drafted at a time: {figures.gain}"
    out.print(said, markup=False, soft_wrap=True)
    if not figures.better:
        out.print(
            "it is no better than before: lower learning_rate, or take more documents or fewer epochs", markup=False
        )
    out.print(f'draft with   drafters = ["{name}"]   in the generate stage', markup=False, soft_wrap=True)
    out.print(f"elsewhere    the drafter's folder stands for its name: {folder}", markup=False, soft_wrap=True)
