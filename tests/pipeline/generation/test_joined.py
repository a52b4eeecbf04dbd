"""Joined projections say what they said alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from pipeline.passes.joined import Joined, Share, join

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])  # without and with biases
@torch.inference_mode()
def test_a_model_says_the_same(kind: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**SMALL))
    ids = torch.arange(40).reshape(2, 20)
    expected, weights = model(ids).logits, sum(one.numel() for one in model.parameters())
    join(model)
    assert sum(isinstance(one, Share) for one in model.modules()) == 5 * model.config.num_hidden_layers
    assert sum(one.numel() for one in model.parameters()) == weights
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert all(one.held is None for one in model.modules() if isinstance(one, Joined))  # what was computed is let go


def test_other_projections_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(8, 2)
            self.gate_proj, self.up_proj = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    odd = Odd()
    join(odd)
    assert all(type(one) is nn.Linear for one in odd.children())


def test_threads_do_not_take_each_others_shares() -> None:
    torch.manual_seed(0)
    projections = [nn.Linear(8, 8) for _ in range(3)]
    joined = Joined(projections)
    shares = [Share(joined, number) for number in range(3)]

    def work(seed: int) -> bool:
        given = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
        pairs = zip(shares, projections, strict=True)
        return all(torch.allclose(share(given), alone(given), atol=1e-6) for share, alone in pairs)

    with ThreadPoolExecutor(8) as threads, torch.inference_mode():
        assert all(threads.map(work, range(2000)))
