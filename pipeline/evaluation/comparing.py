"""Jobs over the same documents beside each other: tokens, cost, scores, and paired differences to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, select

from pipeline.evaluation.bootstrap import difference, interval
from pipeline.evaluation.costs import Price, cost_per_thousand, price_of_work
from pipeline.evaluation.pairing import Pairing, pair
from pipeline.evaluation.results import Scores, evaluate_spec, metrics_of, read_scores, statistic
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.jobs import find_job
from pipeline.storage.sql import reading
from schemas.compress import CompressBase
from schemas.evaluate import EvaluateSpec
from schemas.job import JobSpec
from schemas.tables import Evaluation


class NothingToCompareError(ValueError):
    """These jobs cannot stand beside each other; the text says which one, why, and what to do."""


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

    ``tokens`` is the mean prompt as sent. ``ratio`` is original over compressed tokens; without compression, the
    longest mean prompt of such jobs over this one's. ``cost_microusd`` is what 1,000 of its documents cost to make.
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sides, the first named first, with the metrics that all of them have."""

    task: str | None
    metrics: tuple[str, ...]
    sides: tuple[Side, ...]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is read of a job at one rate."""

    id: str
    name: str
    spec: JobSpec
    evaluated: EvaluateSpec
    scores: Scores
    rows: dict[str, Any]  # metric -> its row of SQL

    @property
    def label(self) -> str:
        return self.id if self.scores.rate is None else f"{self.id}@{self.scores.rate:g}"

    @property
    def compress(self) -> CompressBase | None:
        return next((stage for stage in self.spec.stages if isinstance(stage, CompressBase)), None)

    @property
    def tokens(self) -> float | None:
        total = self.scores.total("tokens_prompt")
        return None if total is None else total / len(self.scores.ids)


def compare(engine: Engine, names: Sequence[str], baseline: str | None = None) -> Comparison:
    """Jobs by the beginning of their id, one rate of a job as ``ID@RATE``; the baseline is the first unless named.

    A side is set against the baseline at its own rate, where the baseline has it, else against the only one there is.
    Raises ``NothingToCompareError``, ``UnknownJobError``.
    """
    bases = _load(engine, baseline or names[0])
    found = {job.label: job for name in names for job in _load(engine, name)}
    first = [base for base in bases if base.label not in found]
    jobs = [*first, *found.values()]
    metrics = _same_metrics(jobs)
    longest = max((job.tokens or 0.0 for job in jobs if job.compress is None), default=0.0)
    series = _series(jobs)
    sides = [_side(job, _base_of(job, bases), metrics, longest, series[job.label]) for job in jobs]
    return Comparison(jobs[0].evaluated.task, metrics, tuple(sides))


def _load(engine: Engine, name: str) -> list[_Job]:
    prefix, _, rate = name.partition("@")
    row = find_job(engine, prefix)
    spec = JobSpec.model_validate(row.spec)
    evaluated = evaluate_spec(spec)
    if evaluated is None:
        raise NothingToCompareError(f'job {row.id} has no scores: add a stage kind = "evaluate" to it and run it again')
    if row.state != "done":
        raise NothingToCompareError(f"job {row.id} is {row.state}: jobs are compared once they are done")
    found = [_job(engine, row, spec, evaluated, scores) for scores in _scores(row, spec)]
    wanted = [job for job in found if not rate or f"{job.scores.rate:g}" == rate] if spec.rates else found
    if not wanted or (rate and not spec.rates):
        has = ", ".join(f"{one:g}" for one in spec.rates) or "only its one budget"
        raise NothingToCompareError(f"{name}: job {row.id} has no rate {rate}; it has {has}")
    return wanted


def _scores(row: Any, spec: JobSpec) -> list[Scores]:
    fs, root = resolve_path(row.output)
    try:
        return read_scores(fs, f"{root}/data", spec)
    except FileNotFoundError:
        why = f"{row.output}/data is gone: contextmill resume {row.id} makes it again from what is beside it"
    except pa.ArrowInvalid as error:
        why = f"{row.output}/data is damaged: {error}"
    raise NothingToCompareError(why)


def _job(engine: Engine, row: Any, spec: JobSpec, evaluated: EvaluateSpec, scores: Scores) -> _Job:
    query = select(Evaluation).where(Evaluation.job_id == row.id).order_by(Evaluation.place)
    with reading(engine) as connection:
        rows = {one.metric: one for one in connection.execute(query) if one.rate == scores.rate}
    return _Job(row.id, row.name, spec, evaluated, scores, rows)


def _same_metrics(jobs: Sequence[_Job]) -> tuple[str, ...]:
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


def _series(jobs: Sequence[_Job]) -> dict[str, str]:
    """What a plot joins by a line: jobs that differ in their budget alone. Methods of one name are told apart."""
    keys = {job.label: _method(job) for job in jobs}
    names: dict[tuple[str, str], str] = {}
    for job in jobs:
        title, _ = key = keys[job.label]
        if key not in names:
            names[key] = title if title not in names.values() else f"{title} ({job.name})"
    return {label: names[key] for label, key in keys.items()}


def _method(job: _Job) -> tuple[str, str]:
    """A method's name, and everything about the job that decides its answers but the budget."""
    settings = job.spec.output_settings()["stages"]
    budget = {"rate", "rates", "target_tokens"}
    kept = [{key: value for key, value in stage.items() if key not in budget} for stage in settings]
    if job.compress is None:
        return job.name, job.id
    reference = " (reference)" if job.compress.fidelity == "reference" else ""
    return f"{job.compress.method}{reference}", f"{job.spec.target.model}: {kept}"


def _base_of(job: _Job, bases: Sequence[_Job]) -> _Job:
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


def _side(job: _Job, base: _Job, metrics: Sequence[str], longest: float, series: str) -> Side:
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
        cost_microusd=_cost(job),
        metrics={metric: _found(job, base, metric, paired) for metric in metrics},
    )


def _found(job: _Job, base: _Job, metric: str, paired: Pairing) -> Found:
    row = job.rows[metric]
    if job.label == base.label or not paired.common:
        return Found(row.value, row.low, row.high, paired.common)
    sides = paired.rows(job.scores.rows(metric), base.scores.rows(metric))
    gap = interval(sides, difference(statistic(metric)))
    return Found(row.value, row.low, row.high, paired.common, gap.value, gap.low, gap.high)


def _ratio(job: _Job, longest: float) -> float | None:
    if job.compress is None:
        return longest / job.tokens if job.tokens else None
    original, compressed = job.scores.total("tokens_original"), job.scores.total("tokens_compressed")
    return original / compressed if original and compressed else None


def _cost(job: _Job) -> int | None:
    price: Price = price_of_work(job.spec)
    return cost_per_thousand(job.scores, price)
