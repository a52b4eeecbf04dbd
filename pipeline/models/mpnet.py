"""MPNet with fused attention: transformers writes all scores of every layer to memory, twice, and its bias per row."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch


def with_fused_attention(model: Any) -> None:
    """Let the attention layers of an MPNet read by ``scaled_dot_product_attention``; other models stay as they are."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

    for module in model.modules():
        if isinstance(module, MPNetEncoder):
            module.compute_position_bias = MethodType(_position_bias, module)
            module.config._attn_implementation = "sdpa"  # masks are of truth values then, and none where all is seen
        elif isinstance(module, MPNetSelfAttention):
            module.forward = MethodType(_attention, module)


def _position_bias(encoder: Any, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Of all rows ``[1, heads, tokens, tokens]``: it depends on the distance of two tokens alone."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    buckets = encoder.relative_position_bucket(places - places[:, None])
    bias: torch.Tensor = encoder.relative_attention_bias(buckets).permute(2, 0, 1)[None]
    return bias.contiguous()


def _attention(
    layer: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, position_bias: torch.Tensor,
    output_attentions: bool = False, **_: Any,
) -> tuple[torch.Tensor]:  # fmt: skip
    """``[rows, tokens, d]`` as the layer's own forward gives it; attention probabilities cannot be had."""
    assert not output_attentions
    shape = (*hidden_states.shape[:-1], -1, layer.attention_head_size)
    query, key, value = (one(hidden_states).view(shape).transpose(1, 2) for one in (layer.q, layer.k, layer.v))
    if attention_mask is not None:
        position_bias = torch.where(attention_mask, position_bias, torch.finfo(position_bias.dtype).min)
    seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, position_bias)
    return (layer.o(seen.transpose(1, 2).flatten(2)),)
