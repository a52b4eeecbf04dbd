"""Models for the tests of memory slots, kept for a file of them; what is encoded, counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import lines

from pipeline.memory.corpus import Corpus
from pipeline.memory.ragged import encode_spans
from pipeline.models import LoadedModel, ModelPool


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu", limit=4)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return ModelPool("cpu").causal_lm(str(tiny_model))


@pytest.fixture(scope="module")
def corpus(base: LoadedModel) -> Corpus:
    texts = ["\n".join(lines()[at : at + 12]) for at in range(0, 120, 12)]
    return Corpus.of([base.tokenizer(text)["input_ids"] for text in texts])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many spans were encoded, pass by pass."""
    spans: list[int] = []

    def counted(coder: Any, ids: Any, counts: Any) -> Any:
        spans.append(len(ids))
        return encode_spans(coder, ids, counts)

    monkeypatch.setattr("pipeline.memory.encoding.encode_spans", counted)
    yield spans
