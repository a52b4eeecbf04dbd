"""A judge that commands share: answers of jobs set against each other by a model, itself an ordinary job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli.shared import FAILURE, USAGE, fail, out, print_json
from pipeline.cli.teaching import Teaching

if TYPE_CHECKING:
    from pipeline.evaluation.comparing import Comparison, Match
    from pipeline.evaluation.judging import Pair
    from schemas.job import JobSpec
    from schemas.settings import Settings

Judge = Annotated[
    Path | None,
    typer.Option(
        "--judge", metavar="FILE",
        help="A job file whose one stage is generate: its target judges the answers, each pair in both orders.",
    ),
]  # fmt: skip
Most = Annotated[
    int | None, typer.Option("--most", min=1, help="Judge so many answers of a job at most, the same of all.")
]


def load_model(file: Path, what: str, output: str | None, given: Settings, *, asks: bool) -> JobSpec:
    """The job of ``file``, whose target is to be ``what``; its input, of which it needs none, will be rows of our own.

    What would fail it is said before anything is made: where it ``asks``, an endpoint without key or price, too.
    Raises ``ModelError``, ``Halt``.
    """
    from pipeline.cli.running import check_broker, check_hosted, load
    from pipeline.stages import check, stage_hashes

    job = load(file, output, ["rows.jsonl"], None)
    if [stage.kind for stage in job.stages] != ["generate"]:
        kinds = ", ".join(stage.kind for stage in job.stages)
        fail(f'{file}: {what} is one stage of kind = "generate", not {kinds}', USAGE)
    check(job)
    stage_hashes(job)  # a model that is not there is found now
    if asks:
        check_hosted(job, given)
        check_broker(given)
    return job


@dataclass(frozen=True, slots=True)
class Judging(Teaching):
    """One run of a judge."""

    judge: JobSpec

    def judged(self, found: Comparison, pairs: Sequence[list[Pair]]) -> tuple[Comparison, Any, int]:
        """``found`` with verdicts on the ``pairs`` of each side; the judge's summary, where programs read along, and
        its exit code: ``FAILURE`` where it rejected every prompt, and all are unanswered. Ends in ``typer.Exit`` where
        the judge's job is stopped, as by its budget."""
        from pipeline.evaluation.judging import asks, judged

        rows = [row for number, some in enumerate(pairs) for row in asks(some, str(number))]
        said, summary, code = dict[str, str](), None, 0
        if rows:
            self.say(
                f"{self.judge.target.model} judges {counted(len(rows) // 2, 'pair')} of answers, each in both orders"
            )
            job_id, code, summary = self.run_rows(self.judge, "verdicts", rows, {}, may_be_none=True)
            if code != FAILURE:
                said = {name: one.text for name, one in self.written(job_id).items()}
        sides = [
            side if side.baseline else replace(side, judged=judged(some, str(number), said))
            for number, (side, some) in enumerate(zip(found.sides, pairs, strict=True))
        ]
        return replace(found, sides=tuple(sides), judge=self.judge.target.model), summary, code


def all_pairs(matches: Sequence[Match], most: int | None) -> list[list[Pair]]:
    """What is to be judged of each side; nothing of a baseline."""
    from pipeline.evaluation.pairs import pairs_of

    return [[] if one.same else pairs_of(*one, most) for one in matches]


def print_ahead(judge: JobSpec, given: Settings, pairs: Sequence[list[Pair]], json_: bool) -> None:
    """What the judge would read and cost. Raises ``ModelError``."""
    from pipeline.cli.views import as_json, print_forecast
    from pipeline.evaluation.judging import asks
    from pipeline.surveying import estimate_job, surveyed

    texts = [row["text"] for number, some in enumerate(pairs) for row in asks(some, str(number))]
    forecast = estimate_job(judge, given, surveyed(texts))
    if json_:
        print_json(
            {"judge": judge.target.model, "pairs": sum(map(len, pairs)), "asked": len(texts), **as_json(*forecast)}
        )
        return
    about = counted(sum(map(len, pairs)), "pair")
    out.print(f"{judge.target.model} would be asked {counted(len(texts), 'time')} about {about}", markup=False)
    print_forecast(*forecast)
