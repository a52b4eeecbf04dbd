"""What 1,000 documents cost: calls by their bill, local work by the hour, and unknown where a price is."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest

from pipeline.evaluation.costs import cost_per_thousand, price_of_work
from pipeline.evaluation.results import Scores
from schemas.job import JobSpec
from schemas.records import STAGE_FIELDS

COMPRESS = {"kind": "compress", "method": "truncation", "rate": 0.5}
MONEY = STAGE_FIELDS["generate"].field("cost_usd").type


def spec(backend: str) -> JobSpec:
    stages = [COMPRESS, {"kind": "generate", "backend": backend}, {"kind": "evaluate", "task": "qa"}]
    target = {"model": "gpt-4.1-mini", "tokenizer": "smollm2-135m-instruct", "gpu_usd_per_hour": "3.60"}
    return JobSpec.model_validate({"input": {"path": "x"}, "target": target, "stages": stages})


def scores(*usd: str | None) -> Scores:
    costs = pa.array([None if one is None else Decimal(one) for one in usd], MONEY)
    seconds = pa.array([2.0] * len(usd), pa.float64())
    columns = {"cost_usd": costs, "compress_seconds": seconds, "generate_seconds": pa.array([10.0] * len(usd))}
    return Scores(None, [str(n) for n in range(len(usd))], pa.table(columns))


@pytest.mark.parametrize(
    ("backend", "usd", "microusd"),
    [
        ("openai", ["0.001", "0.003"], 4_000_000),  # 2 millis a call, and 2 s of a worker at 0.1 cent a second
        ("openai", ["0.001", None], None),
        ("local", [None, None], 12_000_000),  # 12 s of a worker
        ("local", [], None),
    ],
)
def test_what_a_thousand_documents_cost(backend: str, usd: list[str | None], microusd: int | None) -> None:
    assert cost_per_thousand(scores(*usd), price_of_work(spec(backend))) == microusd
