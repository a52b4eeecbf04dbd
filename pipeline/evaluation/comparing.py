"""Jobs over the same documents beside each other: tokens, cost, scores, and paired differences to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sqlalchemy import Engine

from pipeline.evaluation.bootstrap import difference, interval
from pipeline.evaluation.costs import cost_per_thousand, price_of_work
from pipeline.evaluation.judging import Judged
from pipeline.evaluation.loading import EvaluatedJob, NothingToCompareError, load
from pipeline.evaluation.pairing import Pairing, pair
from pipeline.evaluation.results import metrics_of, statistic

__all__ = ["Comparison", "Found", "NothingToCompareError", "Side", "compare", "lined_up"]

BUDGET = frozenset({"rate", "rates", "target_tokens", "target_token"})
"""Settings of a compress stage that say how much is kept, not how."""


@dataclass(frozen=True, slots=True)
class Found:
    """A metric of one side, from 0 to 1, and its difference to the baseline over the ``common`` documents of both.

    Intervals are of 95%. ``None``: nothing is scored, or it is the baseline itself.
    """

    value: float | None
    low: float | None
    high: float | None
    common: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One job at one rate. ``series`` is what differs from it by its budget alone.

    ``tokens`` is the mean prompt as sent. ``ratio`` is original over compressed tokens, slots being tokens, too; of a
    job without either, the longest mean prompt of such jobs over its own. ``cost_microusd`` is what 1,000 of its
    documents cost to make. ``judged``: against the baseline, where a judge was asked.
    """

    job_id: str
    name: str
    series: str
    rate: float | None
    baseline: bool
    documents: int
    scored: int
    tokens: float | None
    ratio: float | None
    cost_microusd: int | None
    metrics: dict[str, Found]
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sides, the first named first, with the metrics that all of them have; the name of the ``judge``, if any."""

    task: str | None
    metrics: tuple[str, ...]
    sides: tuple[Side, ...]
    judge: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)


class Match(NamedTuple):
    """A job at one rate, and the one that it is set against: itself, where it is the baseline."""

    job: EvaluatedJob
    base: EvaluatedJob

    @property
    def same(self) -> bool:
        """Whether there is nothing to set against each other."""
        return self.job.label == self.base.label


def lined_up(engine: Engine, names: Sequence[str], baseline: str | None = None) -> list[Match]:
    """Jobs by the beginning of their id, one rate of a job as ``ID@RATE``; the baseline is the first unless named.

    A side is set against the baseline at its own rate, where the baseline has it, else against the only one there is.
    Raises ``NothingToCompareError``, ``UnknownJobError``.
    """
    bases = load(engine, baseline or names[0])
    found = {job.label: job for name in names for job in load(engine, name)}
    first = [base for base in bases if base.label not in found]
    return [Match(job, _base_of(job, bases)) for job in (*first, *found.values())]


def compare(engine: Engine, names: Sequence[str], baseline: str | None = None) -> Comparison:
    """Those that are ``lined_up``, which says what it raises."""
    return compared(lined_up(engine, names, baseline))


def compared(matches: Sequence[Match]) -> Comparison:
    """Raises ``NothingToCompareError``."""
    jobs = [one.job for one in matches]
    metrics = _same_metrics(jobs)
    longest = max((job.tokens or 0.0 for job in jobs if not job.shortens), default=0.0)
    series = _series(jobs)
    sides = [_side(*one, metrics, longest, series[one.job.label]) for one in matches]
    return Comparison(jobs[0].evaluated.task, metrics, tuple(sides))


def _same_metrics(jobs: Sequence[EvaluatedJob]) -> tuple[str, ...]:
    first = jobs[0]
    for job in jobs[1:]:
        ways = [(one.evaluated.task, one.evaluated.bleu_tokenizer) for one in (first, job)]
        if ways[0] != ways[1]:
            said = " and ".join(f"{one.id} as {one.evaluated.task or 'plain text'}" for one in (first, job))
            raise NothingToCompareError(f"scored in different ways: {said}; compare jobs whose evaluate stages agree")
    shared = [metric for metric in metrics_of(first.evaluated) if all(metric in job.rows for job in jobs)]
    if not shared:
        raise NothingToCompareError(f"no metric is common to {', '.join(dict.fromkeys(job.id for job in jobs))}")
    return tuple(shared)


def _series(jobs: Sequence[EvaluatedJob]) -> dict[str, str]:
    """What a plot joins by a line: jobs that differ in their budget alone. Methods of one name are told apart."""
    keys = {job.label: _method(job) for job in jobs}
    names: dict[tuple[str, str], str] = {}
    for job in jobs:
        title, _ = key = keys[job.label]
        if key not in names:
            names[key] = title if title not in names.values() else f"{title} ({job.name})"
    return {label: names[key] for label, key in keys.items()}


def _method(job: EvaluatedJob) -> tuple[str, str]:
    """A method's name, and everything about the job that decides its answers but the budget."""
    kept = [_without_budget(stage) for stage in job.spec.output_settings()["stages"]]
    if job.compress is None:
        return job.name, job.id
    reference = " (reference)" if job.compress.fidelity == "reference" else ""
    return f"{job.compress.method}{reference}", f"{job.spec.target.model}: {kept}"


def _without_budget(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_budget(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in BUDGET
    }


def _base_of(job: EvaluatedJob, bases: Sequence[EvaluatedJob]) -> EvaluatedJob:
    if len(bases) == 1:
        return bases[0]
    same = [base for base in bases if base.scores.rate == job.scores.rate]
    if not same:
        rates = ", ".join(f"{base.scores.rate:g}" for base in bases)
        raise NothingToCompareError(
            f"the baseline {bases[0].id} has several rates ({rates}), and none is that of {job.label}: "
            f"name one, as in --baseline {bases[0].label}"
        )
    return same[0]


def _side(job: EvaluatedJob, base: EvaluatedJob, metrics: Sequence[str], longest: float, series: str) -> Side:
    paired = pair(job.scores, base.scores)
    if job is not base and not paired.common and job.scores.ids and base.scores.ids:
        raise NothingToCompareError(f"{job.label} and {base.label} {paired.why_none}")
    first = job.rows[metrics[0]]
    return Side(
        job_id=job.id,
        name=job.name,
        series=series,
        rate=job.scores.rate,
        baseline=job.label == base.label,
        documents=first.documents,
        scored=first.scored,
        tokens=job.tokens,
        ratio=_ratio(job, longest),
        cost_microusd=cost_per_thousand(job.scores, price_of_work(job.spec)),
        metrics={metric: _found(job, base, metric, paired) for metric in metrics},
    )


def _found(job: EvaluatedJob, base: EvaluatedJob, metric: str, paired: Pairing) -> Found:
    row = job.rows[metric]
    if job.label == base.label or not paired.common:
        return Found(row.value, row.low, row.high, paired.common)
    sides = paired.rows(job.scores.rows(metric), base.scores.rows(metric))
    gap = interval(sides, difference(statistic(metric)))
    return Found(row.value, row.low, row.high, paired.common, gap.value, gap.low, gap.high)


def _ratio(job: EvaluatedJob, longest: float) -> float | None:
    if not job.shortens:
        return longest / job.tokens if job.tokens else None
    original, compressed = job.scores.total("tokens_original"), job.scores.total("tokens_compressed")
    return original / compressed if original and compressed else None
