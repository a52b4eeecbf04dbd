"""Attention of few new tokens, by Triton's interpreter; what it says on a GPU is seen before it is used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "fakes" / "interpreted_few.py"

CASES = {
    "many parts, put together": (1, 9, 3, 64, [600]),
    "more rows than programs: one part": (1, 4, 4, 16, [20] * 70),
    "heads and tokens share a key": (8, 12, 2, 32, [1, 300, 64]),
    "more queries than a program takes, a size that is no power of two": (17, 8, 1, 80, [70, 63]),
    "at a part's border, and nothing stored": (2, 3, 3, 32, [0, 1, 62, 63, 64]),
}


def test_each_token_sees_its_columns() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    command = [sys.executable, str(SCRIPT), json.dumps(list(CASES.values()))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for case, (off, counted) in zip(CASES, json.loads(ended.stdout), strict=True):
        assert off < 1e-5 and not counted, case
