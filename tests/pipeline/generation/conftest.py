from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosted_rig import new_job
from other_models import WINDOW, save_other
from sqlalchemy import Engine
from tiny_models import save_tiny_llama

from pipeline.generation import shard
from pipeline.storage.sql import open_engine


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
