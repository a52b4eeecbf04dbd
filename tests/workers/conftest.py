"""Fleets for the tests of the queue: workers with odd stages, on servers of the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from fleet import QUICK, Fleet
from servers import RedisServer

ODD_WORKER = Path(__file__).parent / "odd_worker.py"
LONG = bool(os.environ.get("LONG"))
AWAY_SECONDS = 60.0 if LONG else 10.0  # LONG=1: as long as the promise says

MakeFleet = Callable[..., Fleet]


def odd_fleet(folder: Path, database_url: str, broker_url: str, timings: Mapping[str, float] = QUICK) -> Fleet:
    """A fleet whose ``copy`` stage obeys the documents' texts (``odd_worker``)."""
    roots = f"{Path(__file__).parent}:{Path(__file__).parent.parent.parent}"
    environment = {"ODD_LOG": str(folder / "odd.log"), "PYTHONPATH": roots}
    return Fleet(folder, database_url, broker_url, timings, environment, entry=(str(ODD_WORKER), "worker"))


@pytest.fixture
def away_seconds() -> float:
    return AWAY_SECONDS


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
