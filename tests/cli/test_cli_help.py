"""`--help` answers at once, and every command has one."""

from __future__ import annotations

import re
import resource

import pytest
from command import User

COMMANDS = (
    "run",
    "submit",
    "tune-drafting",
    "align",
    "distill",
    "icae",
    "worker",
    "status",
    "resume",
    "cancel",
    "retry-dead",
    "report",
    "compare",
    "show",
    "export",
    "models",
    "doctor",
)


def test_help_is_quick_and_names_every_command(user: User) -> None:
    """0.5 s on a quiet machine; here the best of three must stay under twice that of a core, whatever else runs."""
    took = []
    for _ in range(3):
        before = _seconds_of_children()
        ended = user.says("--help")
        took.append(_seconds_of_children() - before)
    assert ended.code == 0
    assert min(took) < 1.0, took
    assert all(f" {name} " in ended.out for name in COMMANDS)
    assert "Exit codes" in ended.out


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "name", [*COMMANDS, *(f"icae {one}" for one in ("pretrain", "finetune", "prompts", "evaluate", "reconstruct"))]
)
def test_every_command_explains_itself(user: User, name: str) -> None:
    """With a sentence beside each option, and an example that its own options allow, whole on a line to be copied."""
    ended = user.says(*name.split(), "--help")
    assert ended.code == 0
    assert "Usage: contextmill" in ended.out
    shown = [line.strip() for line in ended.out.partition("Example")[2].splitlines()]
    examples = [line for line in shown if re.match(rf"([A-Z_]+=\S+ )*contextmill {name}\b", line)]
    assert examples
    offered = set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", ended.out.partition("Example")[0]))
    for example in examples:
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", example)) <= offered, example
    assert name != "align" or "stages." not in ended.out  # its file has none
