"""A user in an empty folder with a job that copies three documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import User


@pytest.fixture
def user(tmp_path: Path, tiny_model: Path) -> User:
    """Someone with a job file and three documents."""
    return User.with_a_job(tmp_path, tiny_model)
