"""Done jobs with their scores, as a comparison takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, select

from pipeline.evaluation.results import Scores, evaluate_spec, read_scores
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.jobs import find_job
from pipeline.storage.sql import reading
from schemas.compress import CompressBase
from schemas.evaluate import EvaluateSpec
from schemas.job import JobSpec
from schemas.memory import EncodeSpec
from schemas.tables import Evaluation


class NothingToCompareError(ValueError):
    """These jobs cannot stand beside each other; the text says which one, why, and what to do."""


@dataclass(frozen=True, slots=True)
class EvaluatedJob:
    """What is read of a done job at one rate; ``rows`` are its rows of SQL by metric, ``output`` is its folder."""

    id: str
    name: str
    output: str
    spec: JobSpec
    evaluated: EvaluateSpec
    scores: Scores
    rows: dict[str, Any]

    @property
    def label(self) -> str:
        """The job's id, with its rate where it has several."""
        return self.id if self.scores.rate is None else f"{self.id}@{self.scores.rate:g}"

    @property
    def compress(self) -> CompressBase | None:
        """The job's compress stage, if it has one."""
        return next((stage for stage in self.spec.stages if isinstance(stage, CompressBase)), None)

    @property
    def shortens(self) -> bool:
        """Whether its rows say how much shorter its prompts are: compressed, or with slots in place of contexts."""
        return any(isinstance(stage, CompressBase | EncodeSpec) for stage in self.spec.stages)

    @property
    def tokens(self) -> float | None:
        """The mean prompt as it was sent, in tokens."""
        total = self.scores.total("tokens_prompt")
        return None if total is None else total / len(self.scores.ids)


def load(engine: Engine, name: str) -> list[EvaluatedJob]:
    """The job whose id begins so, once for each of its rates; with ``@RATE`` behind, at that one.

    Raises ``NothingToCompareError``, ``UnknownJobError``.
    """
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


def _job(engine: Engine, row: Any, spec: JobSpec, evaluated: EvaluateSpec, scores: Scores) -> EvaluatedJob:
    query = select(Evaluation).where(Evaluation.job_id == row.id).order_by(Evaluation.place)
    with reading(engine) as connection:
        rows = {one.metric: one for one in connection.execute(query) if one.rate == scores.rate}
    return EvaluatedJob(row.id, row.name, row.output, spec, evaluated, scores, rows)
