"""The bundled scorer on real few-shot prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.mark.model
def test_json_tags_and_numbers_under_the_real_scorer(real_pool: ModelPool) -> None:
    rows = [{"id": n, "title": f"Row {n}", "body": " ".join(row["contexts"])[:300]} for n, row in enumerate(ROWS[:2])]
    tagged = f"<llmlingua, compress=False>if (a < b) {{ c(); }}</llmlingua>\n{' '.join(ROWS[0]['contexts'])[:500]}"
    sources: dict[str, tuple[PromptParts, dict[str, Any]]] = {
        "json": (PromptParts(contexts=(json.dumps(rows),)), {"key_rates": {"body": 0.3, "title": 1.0}}),
        "tags": (PromptParts(contexts=(tagged,), question="How many?"), {"keep": {"digits": True}, "unit": "phrase"}),
    }
    texts = {}
    for structure, (parts, settings) in sources.items():
        stage = {"kind": "compress", "rate": 0.6, "device": "cpu", "structure": structure, **settings}
        job = JobSpec.model_validate({"input": {"path": "x"}, "stages": [stage]})
        (outcome,) = build(job, 0).run([Document(0, "0", parts, "0" * 32)], Run(real_pool))
        assert isinstance(outcome, Result), outcome
        assert 0.95 * (outcome.tokens_asked or 0) <= outcome.tokens_out <= (outcome.tokens_asked or 0)
        texts[structure] = str(outcome.fields["compressed"])
    made = json.loads(texts["json"])
    assert [(row["id"], row["title"]) for row in made] == [(row["id"], row["title"]) for row in rows]
    assert sum(len(row["body"]) for row in made) < 0.5 * sum(len(str(row["body"])) for row in rows)
    assert texts["tags"].startswith("if (a < b) { c(); }")
    assert re.findall(r"\d+", texts["tags"]) == re.findall(r"\d+", tagged)
