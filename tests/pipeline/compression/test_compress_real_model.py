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


def function_words(text: str) -> float:
    """Their share of all words."""
    words = text.lower().split()
    return sum(word in {"the", "a", "of", "to", "is", "and", "in", "for"} for word in words) / len(words)


@pytest.fixture(scope="module")
def real_pool(model_cache: Path) -> Iterator[ModelPool]:
    assert model_cache.is_dir()
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
        # What a model guesses goes first: function words are rarer in what is kept of the contexts.
        kept = text.removeprefix(one.instruction).removesuffix(one.question)
        assert function_words(kept) < 0.85 * function_words(" ".join(one.contexts))
