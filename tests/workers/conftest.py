"""Fleets for the tests of the queue: workers with odd stages, on servers of the test; and jobs worked on by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from by_hand import Silent
from fleet import Fleet, job_spec, write_corpus
from odd_fleets import odd_fleet
from servers import RedisServer
from sqlalchemy import Engine

from pipeline.producer import submit


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


@pytest.fixture
def job(engine: Engine, tmp_path: Path) -> str:
    """40 documents in shards of about ten."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", 40)
    return submit(engine, job_spec(corpus, tmp_path / "out"), Silent()).job_id
