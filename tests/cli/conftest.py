"""A user in an empty folder with a job that copies three documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import COPY, User


@pytest.fixture
def user(tmp_path: Path, tiny_model: Path) -> User:
    """Someone with a job file and three documents."""
    made = User(tmp_path)
    made.write("job.toml", COPY.format(model=json.dumps(str(tiny_model))))
    rows = [{"id": name, "text": f"the text of {name}"} for name in "abc"]
    made.write("in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return made
