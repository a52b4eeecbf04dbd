"""The command `align`: target models answer, a scorer's adapter is trained on the answers, and gets its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.fleet import Fleet
from pipeline.cli.shared import (
    BUDGET,
    DEAD,
    EXIT_CODES,
    FAILURE,
    USAGE,
    DryRun,
    Input,
    Json,
    Output,
    Replace,
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
    from schemas.align_file import AlignFile
    from schemas.settings import Settings

commands = typer.Typer()

AlignPath = Annotated[Path, typer.Argument(help="The alignment file (TOML), see docs/alignment.md.", metavar="FILE")]
AlignSets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: align.epochs=1; KEY= removes it.", metavar="KEY=VALUE"),
]


@commands.command(
    epilog=examples(
        "contextmill align examples/align.toml",
        "contextmill align align.toml --dry-run",
        "contextmill align align.toml --set targets.0.answers.budget_usd=5 --partial",
        then=EXIT_CODES,
    )
)
def align(
    file: AlignPath,
    output: Output = None,
    input_: Input = None,
    sets: AlignSets = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Where the budget is reached, train on the answers it bought.")
    ] = False,
    replace_: Replace = False,
    json_: Json = False,
) -> None:
    """Teach a scoring model to expect what target models write (LLMLingua, section 3.3); the same command goes on.

    Each target answers the prompts in a job of its own, then one job trains the adapter. Nothing is paid for twice.
    """
    from pipeline.cli.running import check_broker, check_hosted, load_align

    spec, given = load_align(file, output, input_, sets), settings()
    if dry_run:
        _estimate(spec, given, json_)
        return
    for job in spec.answer_jobs():
        check_hosted(job, given)
    check_broker(given)
    _check_training(spec)
    recipe = _recipe(spec, given, replace_)
    engine, opened = database(given, spec.output.path, migrate=True)
    with Fleet(opened, workers or given.workers) as fleet:
        _Command(engine, fleet, json_, "adapter", spec, partial).run(recipe, replace_)


def _estimate(spec: AlignFile, given: Settings, json_: bool) -> None:
    from pipeline.cli.views import print_dry_run

    interrupts.say("interrupted")
    for job in spec.answer_jobs():
        print_dry_run(job, given, json_)


def _check_training(spec: AlignFile) -> None:
    """What would fail the training is to be known before answers are paid for. Raises ``Halt``, ``ModelError``."""
    from pipeline.models import adapters

    if find_spec("peft") is None:
        fail("training needs peft: pip install 'contextmill[align]'", FAILURE)
    if adapters.split(spec.align.model):
        fail(f"{spec.align.model} has an adapter already, and a model takes one: align its base anew", USAGE)
    if spec.align.teacher is not None:
        from pipeline.alignment.losses import check_vocabularies
        from pipeline.models import load_tokenizer

        names = spec.align.model, spec.align.teacher
        check_vocabularies(names[0], load_tokenizer(names[0]), names[1], load_tokenizer(names[1]))


def _recipe(spec: AlignFile, given: Settings, replace_: bool) -> str:
    """Says what will be trained on whose answers, before anything is paid. Raises ``ModelError`` if its name is taken.

    Reads the whole input and the models' digests.
    """
    from pipeline.models import adapters, digest_of
    from pipeline.producer import identify
    from schemas.job import digest

    asked = [identify(job).job_id for job in spec.answer_jobs()]
    learning = [digest_of(model, given) for model in (spec.align.model, spec.align.teacher) if model is not None]
    recipe = digest([asked, spec.align.output_settings(), *learning])
    adapters.check_name(spec.name, given.cache, recipe, replace=replace_)
    return recipe


@dataclass(frozen=True, slots=True)
class _Command(Teaching):
    """One run of the command."""

    spec: AlignFile
    partial: bool

    def run(self, recipe: str, replace_: bool) -> None:
        """All jobs, one after the other, then the adapter into the store. Ends in ``typer.Exit`` where one fails."""
        from pipeline.producer import identify

        jobs, summaries, codes = [*self.spec.answer_jobs()], [], []
        for number, job in enumerate(jobs, 1):
            self.say(f"{number} of {len(jobs) + 1}: answers of {job.target.model}")
            code, summary = self.run_job(job, go_on=(BUDGET,) if self.partial else ())
            codes.append(code)
            summaries.append(summary)
        path, pairs = self.gather(jobs, self.spec.output.path, self.spec.name)
        training = self.spec.training_job(path)
        self.say(f"{len(jobs) + 1} of {len(jobs) + 1}: {self.spec.align.model} learns from {counted(pairs, 'answer')}")
        code, trained = self.run_job(training)
        self._install(identify(training).job_id, recipe, replace_, [*summaries, trained])
        if DEAD in (*codes, code):
            raise typer.Exit(DEAD)

    def _install(self, job_id: str, recipe: str, replace_: bool, summaries: list[Any]) -> None:
        from pipeline.models import adapters
        from pipeline.storage.jobs import find_job

        with adapters.at_hand(f"{find_job(self.engine, job_id).output}/align/adapter") as folder:
            manifest = replace(adapters.read_manifest(folder), recipe=recipe)
            made = adapters.install(folder, self.spec.name, self.fleet.settings.cache, manifest, replace=replace_)
        name = f"{self.spec.align.model}+{self.spec.name}"
        if self.json:
            measured = {"nll_before": manifest.nll_before, "nll_after": manifest.nll_after}
            measured |= dict(zip(("agreement_before", "agreement_after"), manifest.agreement, strict=False))
            print_json({"jobs": summaries, "adapter": {"model": name, "folder": str(made), **measured}})
            return
        before, after = manifest.nll_before, manifest.nll_after
        out.print(f"held-out answers: {before:.3f} -> {after:.3f} nats a token", markup=False)
        if manifest.agreement:
            was, now = manifest.agreement
            out.print(f"their likeliest tokens: {was:.1%} -> {now:.1%} (accepted of a drafter)", markup=False)
        out.print(f'score with   model = "{name}"', markup=False, soft_wrap=True)
        out.print(f"elsewhere    the adapter's folder stands for its name: {made}", markup=False, soft_wrap=True)
