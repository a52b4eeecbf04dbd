"""What drafting is worth for given prompts on this machine: the same prompts decoded by one plan after the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from pipeline.generation.decoding import passes_for
from pipeline.generation.earlier import Earlier
from pipeline.generation.local import Generation, LocalGenerator, misfit, prompts_of
from pipeline.generation.policy import GAIN
from pipeline.generation.prompts import Prompt
from pipeline.generation.slotted import with_slots
from pipeline.generation.stage import Generate
from pipeline.generation.timing import timed
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.stages import Outcome, Refusal, Result, Run, build
from schemas.document import Document
from schemas.job import JobSpec
from schemas.stage import GenerateSpec

PLAIN = "plain"

DRAFTING = ("drafters", "draft_rounds", "draft_tokens", "draft_tail", "draft_matrix", "draft_lenience")
"""The settings of a generate stage that make its plan of drafting."""

ALL_AT_ONCE = 2**20
"""``batch_tokens`` in which any number of rows that is measured has room."""

Settings = dict[str, Any]
"""Those of ``DRAFTING`` that are not their defaults."""


def plans(spec: GenerateSpec) -> dict[str, Settings]:
    """What is measured for a stage, by name: plain decoding first, the stage's own plan last unless it is another's."""
    found: dict[str, Settings] = {PLAIN: {}}
    found |= {f"copies {tokens}": {"draft_tokens": tokens} for tokens in (3, 7, 15)}
    found["copies as pay"] = {"draft_tokens": "auto"}
    if spec.drafters:
        two, four = (
            {"drafters": spec.drafters, "draft_rounds": (rounds, *[2] * (len(spec.drafters) - 1))} for rounds in (2, 4)
        )
        found |= {"drafter 2": two, "cascade 2 over 3": {**two, "draft_tokens": 3}}
        # With 7 behind its 8, as many drafts are checked as short steps read at the cost of one.
        found |= {"cascade 2 over 3, 7 behind": {**two, "draft_tokens": 3, "draft_tail": 7}, "drafter 4": four}
        found["drafts as pay"] = own_plan(GenerateSpec(kind="generate", drafters=spec.drafters, draft_tokens="auto"))
    own = own_plan(spec)
    return found if own in found.values() else {**found, "the job's own": own}


def own_plan(spec: GenerateSpec) -> Settings:
    """What the stage says of drafting, and how many rounds its drafters have even where it does not."""
    rounds = {"draft_rounds": spec.plan.rounds} if spec.drafters and not spec.draft_matrix else {}
    fields = GenerateSpec.model_fields
    return {name: getattr(spec, name) for name in DRAFTING if getattr(spec, name) != fields[name].default} | rounds


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of decoding prompts, ``rows`` at once. Seconds are medians of whole runs, ``read_seconds`` those of
    runs with one new token for each prompt; ``answers`` are tokens."""

    rows: int
    seconds: float
    read_seconds: float
    tokens: int
    passes: int
    drafted: int
    answers: list[list[int]]

    @property
    def tokens_per_second(self) -> float | None:
        """While writing. None where nothing was written, or in no time that could be told from that of reading."""
        written, seconds = self.tokens - len(self.answers), self.seconds - self.read_seconds
        return written / seconds if written and seconds > 0 else None

    @property
    def tokens_per_pass(self) -> float:
        """Of the target."""
        return self.tokens / self.passes

    @property
    def accepted(self) -> float | None:
        """The share of drafts. None where there were none."""
        return (self.tokens - self.passes) / self.drafted if self.drafted else None

    def times(self, other: Figures) -> float | None:
        """As many tokens a second."""
        mine, its = self.tokens_per_second, other.tokens_per_second
        return mine / its if mine and its else None


Decode = Callable[[int | None], list[Generation]]
"""Answers to some prompts with so many new tokens each; None: as many as they ask for."""


def decoding(
    target: LoadedModel, spec: GenerateSpec, drafters: Sequence[LoadedModel], prompts: Sequence[Prompt], rows: int,
    pool: ModelPool,
) -> Decode:  # fmt: skip
    """Of the prompts, ``rows`` at once, as ``spec`` says (``planned``)."""
    groups = [prompts[at : at + rows] for at in range(0, len(prompts), rows)]

    def work(new: int | None = None) -> list[Generation]:
        # What was said to the same prompts before is no measure of what other answers will repeat.
        generator = LocalGenerator(target, spec, Run(pool), drafters, Earlier.of(target.model))
        shown = [[replace(one, new_tokens=new or one.new_tokens) for one in group] for group in groups]
        return [one for group in shown for one in generator.generate(group)]

    return work


def measure(
    target: LoadedModel, spec: GenerateSpec, drafters: Sequence[LoadedModel], prompts: Sequence[Prompt], rows: int,
    runs: int, pool: ModelPool,
) -> Figures:  # fmt: skip
    """Decode the prompts ``runs`` times as ``spec`` says, and once before: what a first time makes does not count."""
    work = decoding(target, spec, drafters, prompts, rows, pool)
    work(None)
    read = statistics.median(timed(partial(work, 1), target.device)[1] for _ in range(runs))
    found = [timed(partial(work, None), target.device) for _ in range(runs)]
    made, whole = found[-1][0], statistics.median(seconds for _, seconds in found)
    answers = [one.tokens for one in made]
    passes, drafted = sum(one.passes for one in made), sum(one.drafted for one in made)
    return Figures(rows, whole, read, sum(map(len, answers)), passes, drafted, answers)


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan, and what came of it beside plain decoding of as many rows at once."""

    plan: str
    settings: Settings
    figures: Figures
    plain: Figures

    @property
    def times(self) -> float | None:
        """As many tokens a second as plain decoding."""
        return self.figures.times(self.plain)

    @property
    def same(self) -> int:
        """How many answers are those of plain decoding, word for word."""
        return sum(mine == its for mine, its in zip(self.figures.answers, self.plain.answers, strict=True))


@dataclass(frozen=True, slots=True)
class Refused:
    """A plan that cannot be measured here, and why."""

    plan: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found for so many documents, with so many tokens in their prompts."""

    documents: int
    prompt_tokens: int
    device: str
    measured: list[Measured]
    refused: list[Refused]

    def fastest(self) -> dict[int, Measured]:
        """By rows at once. Plain decoding unless another plan is worth it, of whose drafts some were accepted: else it
        is the clock that differs; nothing where its speed is not known."""
        best: dict[int, Measured] = {}
        for one in self.measured:  # plain decoding is the first of its rows
            rows, times = one.figures.rows, one.times or 0.0
            if rows in best and one.figures.tokens_per_pass <= 1:
                continue
            if (rows not in best and times) or (rows in best and times >= max(GAIN, best[rows].times or 0.0)):
                best[rows] = one
        return best


def prepare(
    job: JobSpec, index: int, documents: Sequence[Document], run: Run
) -> tuple[list[Document], list[tuple[Document, Refusal]]]:
    """The documents that the generate stage at ``index`` would answer, with the columns of the stages before it; and
    those that do not get so far, or that it would refuse. Raises ``ModelError``, ``Halt``."""
    refused: list[tuple[Document, Refusal]] = []

    def kept(outcomes: Sequence[Outcome | Prompt]) -> Iterator[Document]:
        for document, outcome in zip(documents, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                refused.append((document, outcome))
            else:
                fields = with_slots(outcome.fields, outcome.slots) if isinstance(outcome, Result) else {}
                yield replace(document, fields={**document.fields, **fields})

    for place in range(index):
        if documents:
            documents = list(kept(build(job, place).run(documents, run)))
    stage = build(job, index)
    assert isinstance(stage, Generate)
    return list(kept(prompts_of(documents, stage.target.model, stage.load(run), stage.spec))), refused


def tune(
    stage: Generate, documents: Sequence[Document], rows: Sequence[int], runs: int, run: Run,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Tuned:  # fmt: skip
    """Measure every plan over documents that the stage would answer (``prepare``), for each number of ``rows`` at once.

    ``progress`` is told how many measurements are done, of how many, and what begins. Raises ``ModelError``.
    """
    target, (drafters, lacking) = stage.load(run), _drafters(stage, run)
    specs = {name: planned(stage.spec, settings) for name, settings in plans(stage.spec).items()}
    reasons = {
        name: one if isinstance(one, str) else _reason(one, target, drafters, lacking) for name, one in specs.items()
    }
    refused = [Refused(name, reason) for name, reason in reasons.items() if reason]
    usable = {name: one for name, one in specs.items() if isinstance(one, GenerateSpec) and not reasons[name]}
    measured: list[Measured] = []
    done = 0

    def figures(name: str, at_once: int) -> Figures:
        nonlocal done
        progress(done, max(done + 1, len(rows) * len(usable)), f"{name}, {at_once} at once")
        done += 1
        spec = usable[name]
        some, prompts = drafters if spec.drafters else [], _prompts(documents, stage, target, spec)
        return measure(target, spec, some, prompts, at_once, runs, run.models)

    for at_once in rows:
        found = {name: figures(name, at_once) for name in usable}
        _confirm(found, partial(figures, at_once=at_once))
        measured += [Measured(name, own_plan(usable[name]), one, found[PLAIN]) for name, one in found.items()]
    read = sum(len(one.ids) for one in _prompts(documents, stage, target, stage.spec))
    return Tuned(len(documents), read, str(target.device), measured, refused)


def _confirm(found: dict[str, Figures], again: Callable[[str], Figures]) -> None:
    """Measure what would be recommended once more, and plain decoding with it; of each the faster counts: other work on
    the machine makes any plan slow for a moment."""
    confirmed = {PLAIN}
    while (best := max(found, key=lambda name: found[name].tokens_per_second or 0.0)) not in confirmed:
        if (found[best].times(found[PLAIN]) or 0.0) < GAIN:
            return
        for name in (PLAIN, best):
            found[name] = max(found[name], again(name), key=lambda one: one.tokens_per_second or 0.0)
        confirmed.add(best)


def _prompts(documents: Sequence[Document], stage: Generate, target: LoadedModel, spec: GenerateSpec) -> list[Prompt]:
    asked = prompts_of(documents, stage.target.model, target, spec)
    return [one for one in asked if isinstance(one, Prompt)]


def planned(spec: GenerateSpec, settings: Settings) -> GenerateSpec | str:
    """The stage with another plan and room for all rows at once, or why there is no such plan."""
    same = spec.model_dump(exclude={*DRAFTING, "batch_tokens"})
    try:
        return GenerateSpec.model_validate({**same, **settings, "batch_tokens": ALL_AT_ONCE})
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")


def _drafters(stage: Generate, run: Run) -> tuple[list[LoadedModel], str | None]:
    """Those of the stage; or none, and why not all of them can be used."""
    try:
        stage.check()
    except ModelError as error:
        return [], str(error)
    found = list(stage.drafters(run))
    reasons = [one for one in found if isinstance(one, str)]
    return [one for one in found if not isinstance(one, str)], reasons[0] if reasons else None


def _reason(
    spec: GenerateSpec, target: LoadedModel, drafters: Sequence[LoadedModel], lacking: str | None
) -> str | None:
    """Why the plan cannot be measured, if it cannot: jobs would go without its drafts."""
    if not spec.plan.most:
        return None
    if (passes := passes_for(target)) is None:
        return f"{target.ref.name} is decoded by transformers' generate, hence without drafts"
    if not spec.drafters:
        return None
    return lacking or next((why for one in drafters if (why := misfit(one, passes))), None)
