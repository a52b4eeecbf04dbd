"""Compiled passes without padding give what eager ones with padding give; what cannot be packed stays as it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_models import KINDS, save_model
from test_compress_scoring import LENGTHS, stream

from pipeline.compression import packed
from pipeline.compression.compiling import compiled_nats, hasten, read_once
from pipeline.compression.iterative import rank
from pipeline.compression.packed import PackedPasses, attend, can_pack
from pipeline.compression.passes import Passes
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own


@attend.register_kernel("cpu")
def _row_by_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, first: torch.Tensor,
    used: torch.Tensor, longest: int, most_used: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """What the GPU's kernel computes, word for word."""
    found = torch.full_like(query, float("nan"))
    for row, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
        columns = slice(int(first[row]), int(first[row] + used[row]))
        assert end - begin <= longest and used[row] <= most_used
        mask = torch.ones(end - begin, int(used[row]), dtype=torch.bool).tril(int(used[row]) - (end - begin))
        asked, key, value = (one.transpose(0, 1)[None] for one in (query[begin:end], keys[columns], values[columns]))
        seen = torch.nn.functional.scaled_dot_product_attention(asked, key, value, mask, scale=scale, enable_gqa=True)
        found[begin:end] = seen[0].transpose(0, 1)
    return found


@pytest.fixture(autouse=True, params=["aot_eager"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for the GPU, but run by torch's own kernels: a C++ compiler would take half a minute a test."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    compiled_nats.cache_clear()


def scorer_of(folder: Path, kind: str = "llama", dtype: str = "float32") -> Scorer:
    return Scorer(ModelPool("cpu").causal_lm(save_model(folder, kind), dtype), batch_tokens=400)


def hastened(scorer: Scorer) -> bool:
    """As on a GPU in half precision."""
    assert hasten(scorer.trunk, scorer.trunk.layers, lambda: read_once(scorer.trunk, scorer.head))
    return can_pack(scorer.trunk)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_packed_passes_give_the_hidden_states_of_padded_ones(tmp_path: Path, dtype: str, most: float) -> None:
    """Rows in any order, some left out, some with columns that were dropped; the store grows twice."""
    scorer = scorer_of(tmp_path, dtype=dtype)
    plain = Passes(scorer, 4)
    steps = [
        (np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0]), np.array([9, 1, 130, 40]), np.array([9, 1, 100, 0])),
        (np.array([1, 3]), np.array([1, 0]), np.array([20, 2]), np.array([20, 1])),
        (np.array([2, 0, 1]), np.array([90, 9, 21]), np.array([40, 30, 5]), np.array([0, 0, 0])),
    ]
    ids = [torch.randint(1, 400, (int(counts.sum()),)) for _, _, counts, _ in steps]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def read(passes: Any) -> list[torch.Tensor]:
        found = []
        for number, ((rows, cached, counts, kept), some) in enumerate(zip(steps, ids, strict=True)):
            if number == 2:
                passes.drop(2, 5, 15, 100)
            found.append(passes.run(rows, some, cached, counts, kept).float())
        return found

    with torch.inference_mode():
        expected = read(plain)
        assert hastened(scorer)
        found = read(PackedPasses(scorer.trunk, 4, scorer.window))
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).norm() / other.norm()) < most
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 6


def test_streams_are_ranked_alike(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path)
    streams = [stream(length, seed, start) for seed, (length, start) in enumerate(LENGTHS)]
    expected = rank(scorer, streams, 30, lambda tokens: None)
    scorer.packs = hastened(scorer)
    assert scorer.packs
    for one, other in zip(rank(scorer, streams, 30, lambda tokens: None), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", set(KINDS) - {"llama"})
def test_what_attends_in_ways_of_its_own_is_not_packed(tmp_path: Path, kind: str) -> None:
    scorer = scorer_of(tmp_path, kind)
    assert not hastened(scorer)
    assert scorer.trunk.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fault", ["fails", "lies"])
def test_a_kernel_that_fails_or_lies_is_not_used(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(query: torch.Tensor, *_: Any) -> torch.Tensor:
        if fault == "fails":
            raise RuntimeError("no kernel image")
        return query * 2

    scorer = scorer_of(tmp_path)
    with torch.inference_mode():
        expected = scorer.trunk(input_ids=torch.arange(40)[None], use_cache=False).last_hidden_state
    monkeypatch.setattr(packed, "attend", broken)
    assert not hastened(scorer)
    assert "runs uncompiled" in caplog.text
    with torch.inference_mode():
        found = scorer.trunk(input_ids=torch.arange(40)[None], use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected)
