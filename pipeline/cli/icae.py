"""The commands `icae`: contexts as memory slots, and the encoders that make them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import icae_evaluating, icae_repeating, prompting
from pipeline.cli.fleet import Fleet
from pipeline.cli.shared import (
    EXIT_CODES,
    USAGE,
    DryRun,
    Input,
    Json,
    Output,
    Replace,
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
    from pipeline.models.encoders import EncoderManifest
    from schemas.job import JobSpec

commands = typer.Typer(
    help="Memory slots: contexts encoded once by a small encoder, read many times by the frozen target.",
    no_args_is_help=True,
    epilog=examples(
        "contextmill icae pretrain examples/icae.toml",
        "contextmill icae prompts examples/icae-prompts.toml rows.jsonl",
        "contextmill icae finetune examples/icae-finetune.toml",
    ),
)
commands.add_typer(prompting.commands)
commands.add_typer(icae_evaluating.commands)
commands.add_typer(icae_repeating.commands)

Trained = Annotated[
    Path, typer.Argument(help="A job file (TOML) with one stage, of the command's kind.", metavar="FILE")
]


@commands.command(
    epilog=examples(
        "contextmill icae pretrain examples/icae.toml",
        "contextmill icae pretrain icae.toml --dry-run",
        "contextmill icae pretrain icae.toml -i texts.jsonl --set stages.0.steps=2000",
        "contextmill icae pretrain icae.toml --set stages.0.learning_rate=3e-4 --replace",
        then=EXIT_CODES,
    )
)
def pretrain(
    file: Trained,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    replace_: Replace = False,
    json_: Json = False,
) -> None:
    """Train a memory encoder for the target model on texts, and keep it by the job's name; the same command goes on.

    It learns to put spans of text into slots from which the frozen target
    repeats them, and goes on. How well held-out texts come back stands in the
    job's rows.

    What its stage says (docs/memory.md has all of it):
    - lessons: tokens of a span, tokens a slot (ratio), share of the steps
    - steps, tokens_per_step: how long it learns
    - encoder.rank: how large the encoder is; 0 is as large as the target
    - learning_rate: to be lowered where the loss turns to NaN
    """
    _train("pretrain", file, (output, input_, sets), workers, dry_run, replace_, json_)


@commands.command(
    epilog=examples(
        "contextmill icae finetune examples/icae-finetune.toml",
        "contextmill icae finetune answers.toml --dry-run",
        "contextmill icae finetune answers.toml -i rows.jsonl --set stages.0.begin=icae",
        then=EXIT_CODES,
    )
)
def finetune(
    file: Trained,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    replace_: Replace = False,
    json_: Json = False,
) -> None:
    """Teach a memory encoder what is asked about contexts, and keep it by the job's name; the same command goes on.

    Each row is a context, a question and its answer. The frozen target learns
    nothing: the slots come to hold what it answers from. How well it answers
    about held-out contexts stands in the job's rows, beside its answers from
    the whole text and from none.

    What its stage says (docs/memory.md has all of it):
    - begin: the pretrained encoder it begins from
    - steps, rows_per_step: how long it learns
    - autoencoding: how much it goes on repeating, so as not to forget
    - rehearsal: what it learns of texts among the rows, for the same reason
    - interpolation: how far it moves from begin to what was learned
    - chat, system: as the generate stage will say, that is to ask
    """
    _train("finetune", file, (output, input_, sets), workers, dry_run, replace_, json_)


Flags = tuple[str | None, list[str] | None, list[str] | None]
"""Where to, from where, and what else."""


def _train(
    kind: str, file: Path, flags: Flags, workers: int | None, dry_run: bool, replace_: bool, json_: bool
) -> None:
    from pipeline.cli.running import check_broker, load
    from pipeline.cli.views import print_dry_run

    job, given = load(file, *flags), settings()
    if [stage.kind for stage in job.stages] != [kind]:
        kinds = ", ".join(stage.kind for stage in job.stages)
        fail(f'{file}: one stage of kind = "{kind}" is wanted here, not {kinds} (docs/memory.md)', USAGE)
    if getattr(job.stages[0], "begin", None) == job.name:  # afterwards it would be another's beginning
        fail(f"the encoder begins with {job.name}, and cannot take its name: rename the job", USAGE)
    if dry_run:
        print_dry_run(job, given, json_)
        return
    check_broker(given)
    job_id = _named(job, replace_)
    engine, opened = database(given, job.output.path, migrate=True)
    with Fleet(opened, workers or given.workers) as fleet:
        _Command(engine, fleet, json_, "encoder", job).run(job_id)


def _named(job: JobSpec, replace_: bool) -> str:
    """The job's id, before anything is trained. Raises ``ModelError`` for a name that is taken."""
    from pipeline.models import encoders
    from pipeline.producer import identify
    from pipeline.stages import check

    check(job)
    job_id = identify(job).job_id
    encoders.check_name(job.name, settings().cache, job_id, replace=replace_)
    return job_id


@dataclass(frozen=True, slots=True)
class _Command(Teaching):
    """One run of the command."""

    job: JobSpec

    def run(self, job_id: str) -> None:
        """The job, then the encoder into the store. Ends in ``typer.Exit`` where it fails, or has dead documents."""
        from pipeline.memory.stage import ENCODER
        from pipeline.models import adapters, encoders
        from pipeline.storage.jobs import find_job

        code, summary = self.run_job(self.job)
        with adapters.at_hand(f"{find_job(self.engine, job_id).output}/{self.job.stages[0].kind}/{ENCODER}") as folder:
            manifest = replace(encoders.read_manifest(folder), recipe=job_id)
            made = encoders.install(folder, self.job.name, self.fleet.settings.cache, manifest)
        self._tell(made, manifest, summary)
        if code:
            raise typer.Exit(code)

    def _tell(self, folder: Path, manifest: EncoderManifest, summary: Any) -> None:
        figures = manifest.figures
        if self.json:
            said = {"name": self.job.name, "folder": str(folder), "base": manifest.base, **asdict(figures)}
            said |= {"answers": asdict(manifest.answers)} if manifest.answers else {}
            print_json({"jobs": [summary], "encoder": said})
            return
        out.print(f"{counted(figures.texts, 'held-out text')}, {figures.told()}", markup=False, soft_wrap=True)
        if answers := manifest.answers:
            out.print(f"{counted(answers.rows, 'held-out answer')}, {answers.told()}", markup=False, soft_wrap=True)
        out.print(f"encoder   {self.job.name}, for {manifest.base}: {folder}", markup=False, soft_wrap=True)
        out.print("          its curve lies there, too: curve.parquet (step, loss, rate, seconds)", markup=False)
