"""Models for the tests of memory slots, kept for a file of them; what is encoded, counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.memory.ragged import encode_spans
from pipeline.models import ModelPool


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu", limit=4)
    yield pool
    pool.close()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many spans were encoded, pass by pass."""
    spans: list[int] = []

    def counted(coder: Any, ids: Any, counts: Any) -> Any:
        spans.append(len(ids))
        return encode_spans(coder, ids, counts)

    monkeypatch.setattr("pipeline.memory.encoding.encode_spans", counted)
    yield spans
