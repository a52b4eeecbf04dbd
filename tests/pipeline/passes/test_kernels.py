"""Our kernels by Triton's interpreter; what they say on a GPU is seen before they are used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "fakes" / "interpreted_kernels.py"

ATTENTION = {
    "many parts, put together": (1, 9, 3, 64, [600]),
    "more rows than programs: one part": (1, 4, 4, 16, [20] * 70),
    "heads and tokens share a key": (8, 12, 2, 32, [1, 300, 64]),
    "more queries than a program takes, a size that is no power of two": (17, 8, 1, 80, [70, 63]),
    "at a part's border, and nothing stored": (2, 3, 3, 32, [0, 1, 62, 63, 64]),
}
PRODUCTS = {
    "behind a norm, with a bias": (2, 48, 128, "norm bias"),
    "sizes that fill no block": (3, 40, 72, "norm bias"),
    "a gate behind a norm": (2, 64, 192, "norm gate"),
    "a gate over odd sizes": (17, 24, 40, "norm gate"),
    "a gate of many features": (1, 4100, 24, "norm gate"),
    "added to a stream": (3, 40, 72, "added"),
    "a depth in parts": (2, 32, 5000, "added"),
    "many tokens": (40, 32, 4096, "added"),
    "nothing around it": (1, 16, 16, ""),
}
AROUND = {
    "stored": (5, 9, 3, 64, True),
    "where they lie": (5, 9, 3, 64, False),
    "sizes that fill no block": (3, 5, 1, 40, True),
    "wide rows": (2, 12, 2, 128, True),
    "a gate of several blocks, the last of which is not filled": (2, 17, 2, 128, True),
    "no token, stored": (0, 9, 3, 64, True),
    "no token": (0, 9, 3, 64, False),
}
MATCHES = {
    "one program a line": (20, 90, 4, 7, 1024),
    "several, and few different tokens": (20, 90, 2, 15, 16),
    "hardly any match": (20, 90, 1000, 5, 32),
    "one token": (3, 40, 3, 1, 16),
}
CASES = {
    **{f"few: {name}": ("few", *case) for name, case in ATTENTION.items()},
    **{f"turning: {name}": ("turning", *case) for name, case in ATTENTION.items()},
    **{f"product: {name}": ("products", *case) for name, case in PRODUCTS.items()},
    **{f"around: {name}": ("around", *case) for name, case in AROUND.items()},
    **{f"copies: {name}": ("matches", *case) for name, case in MATCHES.items()},
    "rounds end so": ("rounds", False),
    "models are read so": ("wired", False),
    "models are read side by side so": ("widened", False),
    **{f"wide: {kind}": ("wide", kind) for kind in ("llama", "qwen2", "mistral")},
    **{f"model: {kind}": ("model", kind) for kind in ("llama", "qwen2", "mistral")},
}


def interpreted(cases: Sequence[tuple[Any, ...]]) -> list[tuple[float, int]]:
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    command = [sys.executable, str(SCRIPT), json.dumps(list(cases))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: list[tuple[float, int]] = json.loads(ended.stdout)
    return found


def test_kernels_that_say_something_else_are_not_used() -> None:
    spoilt = [(what, True) for what in ("wired", "widened", "rounds")]
    assert [off for off, _ in interpreted(spoilt)] == [1.0, 1.0, 1.0]


def test_kernels_say_what_they_stand_for() -> None:
    for case, (off, counted) in zip(CASES, interpreted(list(CASES.values())), strict=True):
        most = 1e-5 if case.startswith("few") else 2e-5  # sums over up to 5,000 entries, and layers
        assert 0 <= off < most and not counted, (case, off, counted)
