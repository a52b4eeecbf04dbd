"""What `icae evaluate --answers` does: questions answered from slots and from what slots are set against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pipeline.accounting.wording import counted
from pipeline.cli.judging import Judging, all_pairs, load_model
from pipeline.cli.shared import DEAD, FAILURE, USAGE, fail
from pipeline.cli.teaching import Teaching

if TYPE_CHECKING:
    from pipeline.compression.tokens import Tokenising
    from pipeline.evaluation.comparing import Comparison
    from pipeline.memory.encode_stage import Cut
    from pipeline.memory.sides import Questions, Row
    from schemas.job import JobSpec
    from schemas.memory import EncodeSpec
    from schemas.settings import Settings

Answers = Annotated[
    Path | None,
    typer.Option(
        "--answers", metavar="FILE",
        help="A job file of the stages generate and evaluate over rows of context, question and answer: they are "
        "answered from slots and, at equal budget, from the text cut off, a summary and LLMLingua; from all of it, "
        "and from none.",
    ),
]  # fmt: skip
Summaries = Annotated[
    Path | None,
    typer.Option(
        "--summaries", metavar="FILE",
        help="A job file whose one stage is generate: its target writes the summaries. Default: that of --answers.",
    ),
]  # fmt: skip


class Plan(NamedTuple):
    """What is to be answered, how contexts become slots, who writes summaries, and who judges."""

    job: JobSpec
    spec: EncodeSpec
    cut: Cut
    summaries: JobSpec
    judge: JobSpec | None
    questions: Questions
    tokeniser: Tokenising
    most: int | None


class Told(NamedTuple):
    """What came of it, summaries of its jobs where programs read along, and its exit code."""

    found: Comparison
    jobs: list[Any]
    code: int


def plan(
    encoder: str, base: str | None, ratio: Sequence[float] | None, device: str, files: Sequence[Path | None],
    output: str | None, input_: list[str] | None, most: int | None, given: Settings,
) -> Plan:  # fmt: skip
    """All that would fail later is said now. Raises ``ModelError``, ``InputError``, ``Halt``."""
    from pipeline.cli.running import check_broker, load
    from pipeline.compression.tokens import Tokenising
    from pipeline.memory.encode_stage import Encode
    from pipeline.memory.sides import job_of, questions_of
    from pipeline.models import load_tokenizer
    from pipeline.stages import stage_hashes

    answers, summaries, judge = files
    assert answers is not None
    job = load(answers, output, input_, [f"target.model={base}"] if base else None)
    job = _on(device, job)
    spec = _spec(job, answers, encoder, ratio, device)
    stage = Encode(spec, job.target)
    stage.check()
    cut = stage.cut(stage.found()[1])
    stage_hashes(job_of("slots", job, spec, cut))
    alone = job.model_copy(update={"stages": tuple(one for one in job.stages if one.kind == "generate")})
    writer = alone if summaries is None else load_model(summaries, "a writer of summaries", output, given, asks=True)
    said = None if judge is None else _on(device, load_model(judge, "a judge", output, given, asks=True))
    check_broker(given)
    tokeniser = Tokenising(load_tokenizer(job.target.model, given))
    return Plan(job, spec, cut, _on(device, writer), said, questions_of(job.input), tokeniser, most)


def _on(device: str, job: JobSpec) -> JobSpec:
    """All of ``job`` on the ``device`` that --device names, if it does."""
    if device == "auto":
        return job
    from pydantic import ValidationError

    stages = [{**one.model_dump(), "device": device} for one in job.stages]
    try:
        return type(job).model_validate({**job.model_dump(), "stages": stages})
    except ValidationError as error:
        fail(f"--device {device}: {error.errors()[0]['msg'].removeprefix('Value error, ')}", USAGE)


def _spec(job: JobSpec, file: Path, encoder: str, ratio: Sequence[float] | None, device: str) -> EncodeSpec:
    """The job's own encode stage, or a plain one, with this encoder."""
    from schemas.memory import EncodeSpec

    kinds = [stage.kind for stage in job.stages]
    if [kind for kind in kinds if kind != "encode"] != ["generate", "evaluate"]:
        wrong = ", ".join(kinds)
        fail(f"{file}: the stages generate and evaluate are wanted here, not {wrong} (docs/memory.md)", USAGE)
    if ratio and len(ratio) > 1:
        fail("--answers: questions are answered at one budget: name one --ratio", USAGE)
    own = next((stage for stage in job.stages if isinstance(stage, EncodeSpec)), None)
    if own is not None and own.keep_text:
        fail(f"{file}: keep_text leaves contexts as they are, and budgets would not be equal: leave it out", USAGE)
    if own is not None and own.slots and not ratio:
        fail(f"{file}: slots are so many whatever a span's length, and budgets would not be equal: name a ratio", USAGE)
    said = own.model_dump() if own else {"kind": "encode", "device": device}
    named = {"ratio": ratio[0], "slots": None} if ratio else {}
    return EncodeSpec.model_validate({**said, "encoder": encoder, **named})


@dataclass(frozen=True, slots=True)
class Answering(Teaching):
    """One run of it."""

    plan: Plan

    def run(self) -> Told:
        """All sides, one after the other, set against slots and judged. Ends in ``typer.Exit`` where one fails."""
        from pipeline.evaluation.comparing import compared, lined_up
        from pipeline.memory.sides import SIDES, budgets

        known = budgets(self.plan.questions.rows, self.plan.tokeniser, self.plan.cut)
        jobs: list[Any] = []
        codes: list[int] = []
        found = [
            job_id for number, side in enumerate(SIDES, 1)
            if (job_id := self._side(f"{number} of {len(SIDES)}", side, known, jobs, codes))
        ]  # fmt: skip
        matches = lined_up(self.engine, found)
        comparison, code = compared(matches), 0
        if self.plan.judge is not None:
            judging = Judging(self.engine, self.fleet, self.json, self.makes, self.plan.judge)
            comparison, summary, code = judging.judged(comparison, all_pairs(matches, self.plan.most))
            jobs.append(summary)
            codes.append(code)
        return Told(comparison, jobs, code or (DEAD if DEAD in codes else 0))

    def _side(self, number: str, side: str, known: dict[str, int], jobs: list[Any], codes: list[int]) -> str | None:
        """The job that answers so; None where it has no answer to any row."""
        from pipeline.memory.sides import columns_of, job_of

        rows = [*self.plan.questions.rows]
        if side == "summary":
            rows = self._summarised(known, jobs, codes)
        self.say(f"{number}: {counted(len(rows), 'question')}, {SAID[side]}")
        if not rows:
            return None
        job = job_of(side, self.plan.job, self.plan.spec, self.plan.cut)
        ended = self.run_rows(job, side, rows, columns_of(side), side != "slots")
        jobs.append(ended.summary)
        codes.append(ended.code)
        if ended.code != FAILURE:
            return ended.job_id
        self.say(f"none of them is answered {SAID[side]}: left out of what follows")
        return None

    def _summarised(self, known: dict[str, int], jobs: list[Any], codes: list[int]) -> list[Row]:
        from pipeline.memory.sides import summarised, summary_job, to_summarise

        asked = [*to_summarise(known)]
        writer = self.plan.summaries.target.model
        self.say(f"{writer} writes {len(asked)} summaries of as many tokens as there are slots")
        job = summary_job(self.plan.summaries, max(known.values()))
        ended = self.run_rows(job, "short", asked, {"contexts": "contexts", "question": "question"}, True)
        jobs.append(ended.summary)
        codes.append(ended.code)
        written = {} if ended.code == FAILURE else self.written(ended.job_id)
        rows = summarised(self.plan.questions.rows, known, written, self.plan.tokeniser)
        if lacking := len(self.plan.questions.rows) - len(rows):
            self.say(f"{counted(lacking, 'question')} left out there: a context has no summary")
        return rows


SAID = {
    "slots": "answered from slots",
    "text": "answered from all of the text",
    "cut": "answered from the text, cut off at as many tokens as there are slots",
    "summary": "answered from summaries of as many tokens as there are slots",
    "lingua": "answered from as many tokens as there are slots, chosen by LLMLingua",
    "nothing": "answered without the text",
}
