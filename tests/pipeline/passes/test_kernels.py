"""Our kernels by Triton's interpreter; what they say on a GPU is seen before they are used there."""

from __future__ import annotations

import json
import os
import re
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
    "at a part's border, and nothing stored": (2, 3, 3, 32, [0, 1, 126, 127, 128, 129]),
    "large heads": (2, 4, 2, 128, [94, 95, 96, 97, 400]),
    "as many queries as eight warps take": (8, 12, 2, 128, [300]),
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
NATS = {
    "a vocabulary of blocks": (3, 8192, "float16", None, ""),
    "of many blocks, the last not filled": (2, 151_936, "bfloat16", None, ""),
    "of an odd size": (3, 5001, "float32", None, ""),
    "smaller than a block": (4, 7, "float32", None, ""),
    "of a single token": (2, 1, "float32", None, ""),
    "capped": (3, 5001, "float16", 3.0, ""),
    "capped, and far from 0": (3, 5001, "float16", 30, "far"),
    "far from 0": (3, 5001, "float32", None, "far"),
    "closed among others": (3, 5001, "float32", None, "among"),
    "whole blocks closed in front": (3, 20_000, "bfloat16", None, "front"),
    "whole blocks closed behind": (3, 20_000, "float16", None, "behind"),
    "all closed but the target": (3, 9000, "float32", None, "else"),
    "closed and capped": (3, 9000, "float32", 30.0, "among"),
    "no row": (0, 5001, "float16", None, ""),
}
SUMS = {
    "blocks": (128, 192, 32),
    "sizes that fill no block": (70, 41, 5),
    "of more ranks than are multiplied at once": (64, 100, 66),
    "a single number": (1, 1, 1),
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
    **{f"nats: {name}": ("nats", *case) for name, case in NATS.items()},
    **{f"sums: {name}": ("sums", *case) for name, case in SUMS.items()},
    "no number stays none": ("no number",),
    "heads are read so": ("head", 5001, None, False),
    "capped heads are": ("head", 5001, 30.0, False),
    "heads of few tokens are": ("head", 5, None, False),
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
    spoilt = [
        ("wired", True),
        ("widened", True),
        ("rounds", True),
        ("head", 5001, None, True),
        ("head", 5001, 30.0, True),
    ]
    assert [off for off, _ in interpreted(spoilt)] == [1.0] * 5


def test_kernels_say_what_they_stand_for() -> None:
    for case, (off, counted) in zip(CASES, interpreted(list(CASES.values())), strict=True):
        most = 1e-5 if case.startswith("few") else 2e-5  # sums over up to 5,000 entries, and layers
        assert 0 <= off < most and not counted, (case, off, counted)


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], divisible: Sequence[str], **options: Any
) -> Any:
    """For an H100, which compiling needs none of: what the interpreter lets pass the compiler may not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place = {name: at for at, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel, {name: types.get(name, "constexpr") for name in place},
        {(place[name],): value for name, value in constants.items()},
        {(place[name],): [["tt.divisibility", 16]] for name in divisible},
    )  # fmt: skip
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.fixture
def compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("kind", "loads"), [("fp16", 1), ("bf16", 1), ("fp32", 2)])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_logits_are_loaded_16_bytes_at_once(kind: str, loads: int, cap: float | None) -> None:
    from pipeline.passes import surprisal

    types = {"logits": f"*{kind}", "targets": "*i64", "nats": "*fp32", "vocabulary": "i32"}
    constants = {"CAP": cap, "DEEP": surprisal._DEEP, "LANES": surprisal._LANES}
    aligned = ["logits", "nats", "vocabulary"]
    made = compiled(surprisal._surprisal.kernel, types, constants, aligned, num_warps=surprisal._WARPS)
    assert len(re.findall(r"ld\.global\.v4\.b32", made.asm["ptx"])) == loads * surprisal._DEEP
    assert made.metadata.shared <= 1024


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_low_rank_weights_are_multiplied_by_tensor_cores(kind: str) -> None:
    """With and without alignment."""
    from pipeline.passes import sums

    tensors = ["weight", "up", "down", "into"]
    types = {**dict.fromkeys(tensors, f"*{kind}"), **dict.fromkeys(["rows", "columns", "rank"], "i32"), "scale": "fp32"}
    constants = {"ROWS": sums._ROWS, "COLUMNS": sums._COLUMNS, "DEPTH": sums._DEPTH}
    for divisible in (["rows", "columns", "rank", *tensors], []):
        made = compiled(sums._add.kernel, types, constants, divisible, num_warps=4)
        assert re.search(r"wgmma|mma\.sync", made.asm["ptx"]) and made.metadata.shared <= 48 * 1024


SHARED = 227 * 1024
"""Bytes of shared memory that a program on an H100 may have."""


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("features", [8960, 1536])
@pytest.mark.parametrize("tokens", [8, 16])
@pytest.mark.parametrize("around", ["PAIRED", "ADDED"])
def test_short_products_are_by_tensor_cores_and_come_early(around: str, tokens: int, features: int) -> None:
    from pipeline.passes import products

    how = products.tiles(features, 8960, around == "PAIRED", around == "ADDED")
    tensors = ["given", "weight", "out", "bias", "norm", "weighted"]
    numbers = ["tokens", "features", "depth", "each", "scales"]
    types = {**dict.fromkeys(tensors, "*bf16"), **dict.fromkeys(numbers, "i32"), "epsilon": "fp32", "arrived": "*i32"}
    types |= dict.fromkeys(["squares", "new_squares", "sums"], "*fp32")
    constants = {
        "TOKENS": tokens, "FEATURES": how.features, "DEPTH": how.depth, "PARTS": how.parts, "WARPS": how.warps,
        "SCALES": 64 * (around == "PAIRED"), "BIAS": False, "PAIRED": False, "ADDED": False, "EARLY": True,
        around: True,
    }  # fmt: skip
    launch = {"num_warps": how.warps, "num_stages": how.stages, "launch_pdl": True}
    aligned = [*tensors, "features", "depth", "each"]
    made = compiled(products._product, types, constants, aligned, **launch)
    assert re.search(r"mma\.sync", made.asm["ptx"]) and len(re.findall("griddepcontrol", made.asm["ptx"])) == 2
    assert made.metadata.shared <= SHARED // 3  # so that several programs have room on a processor


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("new", "size"), [(1, 64), (1, 128), (8, 128), (16, 256)])
def test_attention_of_few_tokens_fits_and_comes_early(new: int, size: int) -> None:
    from pipeline.passes import few

    grid = few._Grid.of(1, new, 12, 2, size)
    tensors = ["projected", "cosines", "sines", "keys", "values", "out"]
    types = {**dict.fromkeys(tensors, "*bf16"), **dict.fromkeys(["first", "stored"], "*i64"), "arrived": "*i32"}
    types |= dict.fromkeys(["sums", "scales"], "*fp32") | {"scale": "fp32"}
    types |= dict.fromkeys(["new", "parts", "column_stride", "head_stride"], "i32")
    constants = {
        "HEADS": 12, "KEY_HEADS": 2, "GROUP": grid.group, "BLOCKS": grid.blocks, "SIZE": size, "WIDTH": grid.width,
        "QUERIES": grid.queries, "COLUMNS": max(16, few._BLOCK // grid.width), "NEW": 16, "EARLY": True,
    }  # fmt: skip
    aligned = [*tensors, "column_stride", "head_stride"]
    made = compiled(few._attend_new, types, constants, aligned, num_warps=grid.warps, launch_pdl=True)
    assert len(re.findall("griddepcontrol", made.asm["ptx"])) == 2 and made.metadata.shared <= SHARED


@pytest.mark.usefixtures("compiles")
def test_a_stream_begins_early() -> None:
    from pipeline.passes import products

    tensors = ["embeddings", "norm", "states", "weighted"]
    types = {**dict.fromkeys(tensors, "*bf16"), "ids": "*i64", "squares": "*fp32", "size": "i32"}
    made = compiled(products._open, types, {"WIDTH": 2048, "EARLY": True}, [*tensors, "size"], launch_pdl=True)
    assert len(re.findall("griddepcontrol", made.asm["ptx"])) == 2
