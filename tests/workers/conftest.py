"""Fleets for the tests of the queue: workers with odd stages, on servers of the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet
from odd_fleets import odd_fleet
from servers import RedisServer


@pytest.fixture
def fleet(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> Iterator[Fleet]:
    """An odd fleet on SQLite without workers yet."""
    with odd_fleet(tmp_path, sqlite_url, redis_server.url) as made:
        yield made


@pytest.fixture
def each_fleet(tmp_path: Path, database_url: str, redis_server: RedisServer) -> Iterator[Fleet]:
    """An odd fleet on SQLite, then on PostgreSQL."""
    with odd_fleet(tmp_path, database_url, redis_server.url) as made:
        yield made
