"""A finished job in a real database, small enough to add up by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from pipeline.storage.sql import open_engine
from schemas.tables import Base


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = open_engine(database_url)
    Base.metadata.create_all(made)
    yield made
    made.dispose()
