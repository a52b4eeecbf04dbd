"""A model once more, apart from the one that is made ready for fast passes: what it says, and what it takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import row_by_row  # noqa: F401  the kernels of packed passes
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from pipeline.passes.apart import apart
from pipeline.passes.compiling import hasten, read_once
from pipeline.passes.joined import Joined
from pipeline.passes.packable import can_pack

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 400, "attn_implementation": "sdpa",
}  # fmt: skip
IDS = torch.arange(3, 43).reshape(2, 20)


def ready(model: Any) -> None:
    trunk = model.get_decoder()
    assert hasten(trunk, trunk.layers, lambda: read_once(trunk)) and can_pack(trunk)
    assert any(isinstance(one, Joined) for one in model.modules())


def storages(model: nn.Module) -> dict[int, int]:
    """Where the weights lie, and how many bytes there."""
    found = [one.untyped_storage() for one in (*model.parameters(), *model.buffers())]
    return {one.data_ptr(): one.nbytes() for one in found}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])  # without and with biases
@pytest.mark.parametrize("first", ["it", "fast passes"])
def test_it_says_the_same_with_the_same_weights_whoever_comes_first(
    kind: Any, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**SMALL)).eval().requires_grad_(False)
    for one in model.parameters():  # biases begin as zeros
        one.add_(torch.randn(one.shape) / 50)
    with torch.inference_mode():
        expected = model(IDS).logits
    names, size = {name: one.shape for name, one in model.state_dict().items()}, sum(storages(model).values())
    if first == "it":
        made = apart(model)
        ready(model)
    else:
        ready(model)
        made = apart(model)
    with torch.inference_mode():
        for one in (made, model, apart(made)):
            torch.testing.assert_close(one(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert {name: one.shape for name, one in made.state_dict().items()} == names
    assert storages(made) == storages(model) and sum(storages(made).values()) == size
    assert made.config._attn_implementation == "sdpa" != model.config._attn_implementation
    noted = {name for one in made.modules() for name in vars(one) if name.startswith("contextmill_")}
    assert not noted and not any("forward" in vars(one) for one in made.modules())
    assert hasattr(model.get_decoder(), "contextmill_packs")


def test_what_either_is_given_the_other_does_not_have() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval().requires_grad_(False)
    model.model.rotary_emb.contextmill_window = 77  # by who loaded it
    made = apart(model)
    assert made.model.rotary_emb.contextmill_window == 77
    made.model.layers[0].mlp.up_proj = nn.Identity()
    made.model.rotary_emb.register_buffer("more", torch.zeros(3))
    made.register_forward_hook(lambda *_: None)
    made.config.use_cache = False
    assert made.config is made.model.config is made.model.layers[0].self_attn.config
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)
    assert "more" not in dict(model.named_buffers(recurse=True)) and not hasattr(model.model.rotary_emb, "more")
    assert not model._forward_hooks and model.config.use_cache
