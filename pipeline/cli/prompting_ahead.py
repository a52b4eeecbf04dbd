"""The dry run of `icae prompts`: both of its jobs, of which the second asks what the first has not written yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pipeline.accounting.wording import counted, duration, money
from pipeline.cli.shared import out, print_json
from pipeline.cli.views import as_json, print_forecast
from pipeline.memory.contexts import TAKEN, Contexts, to_answer, to_write
from pipeline.surveying import estimate_job, surveyed

if TYPE_CHECKING:
    from pipeline.accounting.estimate import Estimate
    from pipeline.surveying import Forecast
    from schemas.job import JobSpec
    from schemas.settings import Settings

Sum = TypeVar("Sum", int, float)


def print_ahead(job: JobSpec, given: Settings, contexts: Contexts, specific: int, general: int, json_: bool) -> None:
    """What would be asked of which model, in how many calls, and what that would take. Raises ``ModelError``."""
    jobs = {"answers": _answers(job, given, contexts.texts, specific, general)}
    if specific:
        jobs = {"prompts": estimate_job(job, given, surveyed(to_write(contexts.texts, specific))), **jobs}
    asked, most = len(contexts.texts) * specific, len(contexts.texts) * (specific + general)
    model, of_texts = job.target.model, counted(len(contexts.texts), "context")
    if json_:
        said = [{"job": what, "model": model, **as_json(*one)} for what, one in jobs.items()]
        counts = {"contexts": len(contexts.texts), "left_out": contexts.bad, "asked": asked, "prompts": most}
        print_json({"jobs": said, "rows": counts})
        return
    lines = {
        "prompts": f"1 of 2: {model} would write {counted(asked, 'prompt')} about {of_texts}",
        "answers": f"2 of 2: {model} would answer {counted(most, 'prompt')}{' at most' if specific else ''}",
    }
    for what, one in jobs.items():
        out.print(lines[what], markup=False, soft_wrap=True)
        print_forecast(*one)
    out.print(_together([made for made, _, _ in jobs.values()]), markup=False, soft_wrap=True)
    if contexts.bad:
        left_out = f"{counted(contexts.bad, 'row')} would be left out, the first: {contexts.first_bad}"
        out.print(left_out, markup=False, soft_wrap=True)


def _answers(job: JobSpec, given: Settings, texts: Sequence[str], specific: int, general: int) -> Forecast:
    made, seen, bases = estimate_job(job, given, surveyed(to_answer(texts, specific, general)))
    return replace(made, notes=(*made.notes, *([TAKEN] if specific else []))), seen, bases


def _together(made: Sequence[Estimate]) -> str:
    """Calls, time and money; unknown where a part is."""
    calls = counted(sum(one.documents for one in made), "call")
    said = f"together {calls}, {duration(_sum([one.seconds for one in made]))}"
    if any(stage.hosted for one in made for stage in one.stages):
        expected, worst = _sum([one.expected_microusd for one in made]), _sum([one.worst_microusd for one in made])
        said += f", {money(expected)}, at most {money(worst)}"
    return said


def _sum(values: Sequence[Sum | None]) -> Sum | None:
    known = [one for one in values if one is not None]
    return sum(known, start=type(known[0])(0)) if known and len(known) == len(values) else None
