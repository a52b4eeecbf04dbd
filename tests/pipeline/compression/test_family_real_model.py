"""The bundled scorer tells what a question is about, and what in a text says little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compress_models import document, stage_of

from pipeline.models import ModelPool
from pipeline.stages import Result, Run
from schemas.base import DEFAULT_MODEL
from schemas.document import PromptParts

PASSAGES = (
    "The harbour of Oslo froze in the winter of 1841, and no ship could leave it for eleven weeks.",
    "Bread rises because yeast turns sugar into gas. A warm kitchen makes the dough rise faster.",
    "Maria Keller built the first glass greenhouse of the valley in 1902. She grew lemons and figs in it.",
    "The committee met on Tuesday to talk about the new road. It will cost four million crowns.",
)
QUESTION = "What did Maria Keller grow in her greenhouse?"


@pytest.fixture(scope="module")
def real_pool(model_cache: Path) -> Iterator[ModelPool]:
    assert model_cache.is_dir()
    pool = ModelPool("cpu")
    yield pool
    pool.close()


def compressed(pool: ModelPool, parts: PromptParts, **settings: Any) -> Result:
    (outcome,) = stage_of(DEFAULT_MODEL, **settings).run([document(parts)], Run(pool))
    assert isinstance(outcome, Result), outcome
    return outcome


@pytest.mark.model
def test_longllmlingua_puts_the_passage_that_answers_first(real_pool: ModelPool) -> None:
    parts = PromptParts(contexts=PASSAGES, question=QUESTION)
    text = compressed(real_pool, parts, method="longllmlingua", rate=0.6).fields["compressed"]
    first = text.split("\n\n")[0]
    assert "lemons" in first and "Keller" in first
    narrow = compressed(real_pool, parts, method="longllmlingua", rate=0.35).fields["compressed"]
    assert "lemons" in narrow and "yeast" not in narrow


@pytest.mark.model
def test_selective_context_removes_what_says_little(real_pool: ModelPool) -> None:
    parts = PromptParts(contexts=("\n".join(PASSAGES),))
    text = compressed(real_pool, parts, method="selective-context", unit="word", rate=0.5).fields["compressed"]
    words = {word.strip(".,").lower() for word in text.split()}
    assert {"yeast", "lemons", "oslo"} <= words
    assert text.lower().split().count("the") < 0.5 * "\n".join(PASSAGES).lower().split().count("the")
