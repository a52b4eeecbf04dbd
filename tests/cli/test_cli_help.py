"""`--help` answers at once, and every command has one."""

from __future__ import annotations

import time

import pytest
from command import User

COMMANDS = "run", "submit", "worker", "status", "resume", "cancel", "retry-dead", "report", "export", "models", "doctor"


def test_help_is_quick_and_names_every_command(user: User) -> None:
    """0.5 s on a quiet machine; here the best of three must stay under twice that, whatever else runs."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        ended = user.says("--help")
        took.append(time.monotonic() - began)
    assert ended.code == 0
    assert min(took) < 1.0, took
    assert all(f" {name} " in ended.out for name in COMMANDS)
    assert "Exit codes" in ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(user: User, name: str) -> None:
    """With a sentence beside each option."""
    ended = user.says(name, "--help")
    assert ended.code == 0
    assert "Usage: contextmill" in ended.out
