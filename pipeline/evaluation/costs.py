"""What the documents of a job cost to make, in whatever job they were made: calls, and the time of workers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import pyarrow.compute as pc

from pipeline.evaluation.results import Scores
from schemas.job import JobSpec
from schemas.stage import GenerateSpec


@dataclass(frozen=True, slots=True)
class Price:
    """What is paid for: hosted calls by their own cost, local work by the worker's hour."""

    hosted: bool
    usd_per_hour: Decimal


def price_of_work(spec: JobSpec) -> Price:
    """How a job's documents are paid for."""
    hosted = any(isinstance(stage, GenerateSpec) and stage.backend == "openai" for stage in spec.stages)
    return Price(hosted, Decimal(spec.target.gpu_usd_per_hour))


def cost_per_thousand(scores: Scores, price: Price) -> int | None:
    """Micro-dollars for 1,000 documents; ``None`` where there are none, or a call's cost is unknown."""
    if not len(scores.ids):
        return None
    calls = _calls(scores) if price.hosted else Decimal(0)
    if calls is None:
        return None
    names = ["compress_seconds"] if price.hosted else ["compress_seconds", "encode_seconds", "generate_seconds"]
    seconds = sum(float(scores.column(name).sum()) for name in names if name in scores.table.column_names)
    usd = calls + Decimal(seconds) / 3600 * price.usd_per_hour
    return int((usd * 1_000_000_000 / len(scores.ids)).to_integral_value(ROUND_HALF_UP))


def _calls(scores: Scores) -> Decimal | None:
    costs = scores.table["cost_usd"]
    return None if costs.null_count else Decimal(pc.sum(costs).as_py())
