"""Models for the tests of memory slots, kept for a file of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.models import ModelPool


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu", limit=4)
    yield pool
    pool.close()
