from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosted_rig import new_job
from other_models import WINDOW, save_other
from sqlalchemy import Engine
from tiny_models import save_tiny_llama

from pipeline.generation import kept_bigrams, shard
from pipeline.storage.sql import open_engine


@pytest.fixture(autouse=True)
def _own_bigrams(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier tests had answered must not draft in this one, unless it looks for it in a ``cache`` of its own."""
    if "cache" not in request.fixturenames:
        monkeypatch.setattr(kept_bigrams, "_path", lambda loaded: tmp_path / f"bigrams-{loaded.ref.digest}.npz")


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """SQLite with a job to hang calls on, which nothing failed for: an earlier test's port may come again."""
    shard._in_a_row.clear()
    made = open_engine(sqlite_url)
    new_job(made)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small random models by architecture, each with a window of ``WINDOW`` tokens."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llama", "gpt_neox", "gpt2")}
    save_tiny_llama(folders["llama"], window=WINDOW)
    for name in ("gpt_neox", "gpt2"):
        save_other(folders[name], name)
    return folders
