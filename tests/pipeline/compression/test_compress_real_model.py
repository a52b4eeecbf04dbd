"""The bundled scorer on real few-shot prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.models import ModelPool
from pipeline.stages import Result, Run, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec

ROWS = [json.loads(row) for row in Path("examples/gsm8k.jsonl").read_text(encoding="utf-8").splitlines()[:3]]


@pytest.fixture(scope="module")
def real_pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu")
    yield pool
    pool.close()


@pytest.mark.model
def test_few_shot_prompts_in_240_tokens(real_pool: ModelPool) -> None:
    parts = [PromptParts(row["instruction"], tuple(row["contexts"]), row["question"]) for row in ROWS]
    documents = [
        Document(seq, row["id"], one, "0" * 32) for seq, (row, one) in enumerate(zip(ROWS, parts, strict=True))
    ]
    stage = {"kind": "compress", "target_tokens": 240, "device": "cpu"}
    outcomes = build(JobSpec.model_validate({"input": {"path": "x"}, "stages": [stage]}), 0).run(
        documents, Run(real_pool)
    )
    for one, outcome in zip(parts, outcomes, strict=True):
        assert isinstance(outcome, Result)
        text = outcome.fields["compressed"]
        assert 233 <= outcome.tokens_out <= 240 < 700 < outcome.tokens_in
        assert text.startswith(one.instruction + "\n\n")
        assert text.endswith("\n\n" + one.question)
        # What the model could not guess is kept: more digits than function words survive.
        kept, whole = (sum(map(str.isdigit, some)) for some in (text, one.render()))
        articles = [some.split().count("the") for some in (text, one.render())]
        assert kept / whole > articles[0] / articles[1]
