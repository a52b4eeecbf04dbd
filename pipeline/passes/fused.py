"""Steps of decoding in five launches a layer, for models built as Llama is: attention and products of few tokens with
all that stands between them.

Compiled layers take a dozen launches, each of which waits for the one before; with few tokens that is most of the time.
Which models these are their modules say; whether it is true, ``packable`` sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.joined import Joined, Share

if TYPE_CHECKING:
    from pipeline.passes.packed import Step

_KINDS = frozenset({"llama", "qwen2", "mistral"})
"""Of models: others differ where no modules show it, some only after thousands of tokens."""

MOST = 16
"""Tokens of a pass: so many take the product kernel no longer than one."""


_Norm = tuple[nn.Parameter, float]
"""An RMS norm's weights, and what it adds to mean squares."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer is made of: ``queries`` of keys and values as well, ``gates`` of what they let through as well."""

    before: _Norm
    queries: Joined
    out: nn.Parameter
    between: _Norm
    gates: Joined
    down: nn.Parameter
    scale: float


class Fused:
    """The layers of a ``trunk`` of transformers', read by kernels of our own."""

    def __init__(self, trunk: Any, layers: Sequence[_Layer]) -> None:
        self._trunk, self._layers = trunk, layers
        self._last: _Norm = trunk.norm.weight, trunk.norm.variance_epsilon
        self._heads = trunk.config.num_attention_heads
        weight = layers[0].out
        self._arrived = torch.zeros(max(weight.shape), dtype=torch.int32, device=weight.device)

    def read(self, ids: torch.Tensor, at: torch.Tensor, step: Step) -> torch.Tensor:
        """Hidden states ``[tokens, d]`` of ``ids`` ``[tokens]``, ``MOST`` or fewer, at places ``at``, as ``step`` has
        them."""
        with LAUNCHING, torch.cuda.device_of(ids):  # type: ignore[no-untyped-call]
            return self._read(ids, at, step)

    def _read(self, ids: torch.Tensor, at: torch.Tensor, step: Step) -> torch.Tensor:
        from pipeline.passes import few, products  # where there is no GPU there is no Triton

        hidden = self._trunk.embed_tokens(ids)
        cosines, sines = (one[0] for one in self._trunk.rotary_emb(hidden[None], at[None]))
        if cosines.shape[-1] != step.keys[0].shape[-1]:
            raise ValueError("only a part of each head is turned")
        turns, arrived = (cosines.contiguous(), sines.contiguous()), self._arrived
        stream = products.Stream.of(hidden, *self._layers[0].before)
        following = [layer.before for layer in self._layers[1:]] + [self._last]
        for layer, keys, values, norm in zip(self._layers, step.keys, step.values, following, strict=True):
            projected = products.product(stream, layer.queries.weight, arrived, layer.queries.bias)
            attended = few.attend_new(
                projected, turns, keys, values, step.first, step.stored, step.arrived, step.new, self._heads,
                layer.scale,
            )  # fmt: skip
            stream = products.add_product(attended, layer.out, arrived, stream, *layer.between)
            inner = products.product(stream, layer.gates.weight, arrived, paired=True)
            stream = products.add_product(inner, layer.down, arrived, stream, *norm)
        weights, epsilon = self._last
        return nn.functional.rms_norm(stream.states, weights.shape, weights, epsilon)


def fused(trunk: Any) -> Fused | None:
    """The trunk's layers, joined before (``joined``), if it is of a kind that is built so."""
    config = trunk.config
    if getattr(config, "model_type", "") not in _KINDS or getattr(config, "hidden_act", "") != "silu":
        return None
    layers = [_layer(one) for one in getattr(trunk, "layers", [])]
    known = [one for one in layers if one is not None]
    alike = all(hasattr(trunk, name) for name in ("embed_tokens", "rotary_emb"))
    alike = alike and hasattr(getattr(trunk, "norm", None), "variance_epsilon")
    return Fused(trunk, known) if alike and known and len(known) == len(layers) else None


def _layer(layer: Any) -> _Layer | None:
    attention: Any = getattr(layer, "self_attn", None)
    mlp: Any = getattr(layer, "mlp", None)
    norms: list[Any] = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    queries, gates = (_joined(inside, name) for inside, name in ((attention, "q_proj"), (mlp, "gate_proj")))
    out: Any = getattr(attention, "o_proj", None)
    down: Any = getattr(mlp, "down_proj", None)
    if queries is None or gates is None or gates.bias is not None or len(queries.sizes) != 3:
        return None
    if getattr(attention, "scaling", None) is None:
        return None
    if not all(type(one) is nn.Linear and one.bias is None for one in (out, down)):
        return None
    if not all(hasattr(norm, "variance_epsilon") for norm in norms) or hasattr(attention, "q_norm"):
        return None
    if len(list(layer.children())) != 4:
        return None
    before, between = ((norm.weight, norm.variance_epsilon) for norm in norms)
    return _Layer(before, queries, out.weight, between, gates, down.weight, attention.scaling)


def _joined(inside: Any, name: str) -> Joined | None:
    share = getattr(inside, name, None)
    return share.joined if isinstance(share, Share) else None
