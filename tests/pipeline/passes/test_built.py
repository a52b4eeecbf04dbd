"""Places are turned as transformers turns them, whether they are looked up or computed anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from pipeline.passes.built import built
from pipeline.passes.joined import join


def trunk_of(rope: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, rope_parameters={"rope_theta": 1e4, **rope},
    )  # fmt: skip
    trunk = AutoModel.from_config(config).eval()
    for layer in trunk.layers:
        join(layer)
    return trunk


@pytest.mark.parametrize(
    ("rope", "tabled"),
    [
        ({"rope_type": "default"}, True),
        ({"rope_type": "linear", "factor": 4.0}, True),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}, True),
        ({"rope_type": "dynamic", "factor": 4.0}, False),
    ],
    ids=lambda one: one["rope_type"] if isinstance(one, dict) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_are_turned_alike(rope: dict[str, Any], tabled: bool, dtype: torch.dtype) -> None:
    trunk = trunk_of(rope)
    model = built(trunk)
    assert model is not None
    at, states = torch.tensor([0, 95, 7, 7, 31]), torch.zeros(5, 32, dtype=dtype)
    for _ in range(2):
        expected = trunk.rotary_emb(states[None], at[None])
        for found, one in zip(model.turns(states, at, 8), expected, strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, one[0], rtol=0, atol=0)
    assert list(model.tables) == ([dtype] if tabled else [])


def test_heads_that_are_turned_in_part_are_refused() -> None:
    model = built(trunk_of({"rope_type": "default"}))
    assert model is not None
    with pytest.raises(ValueError, match="only a part of each head"):
        model.turns(torch.zeros(2, 32), torch.tensor([0, 1]), 16)
