"""What models built as Llama is are made of: their modules say which these are, ``packable`` sees whether it is so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.passes.joined import Joined, Share

_KINDS = frozenset({"llama", "qwen2", "mistral"})
"""Of models: others differ where no modules show it, some only after thousands of tokens."""

_STEADY = frozenset({"default", "linear", "llama3", "yarn"})
"""Of rotary embeddings: a place is turned alike, whatever other places are read."""

_LONG = 2**18
"""Places that are tabled at most: 128 MiB of the largest heads."""

Two = tuple[torch.Tensor, torch.Tensor]

Norm = tuple[nn.Parameter, float]
"""An RMS norm's weights, and what it adds to mean squares."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer is made of: ``queries`` of keys and values as well, ``gates`` of what they let through as well."""

    before: Norm
    queries: Joined
    out: nn.Parameter
    between: Norm
    gates: Joined
    down: nn.Parameter
    scale: float


@dataclass(frozen=True, slots=True)
class Built:
    """The ``layers`` of a ``trunk`` of transformers', and the norm behind the ``last``."""

    trunk: Any
    layers: tuple[Layer, ...]
    last: Norm
    tables: dict[torch.dtype, Two] = field(default_factory=dict, repr=False, compare=False)

    @property
    def heads(self) -> int:
        """Of queries."""
        return int(self.trunk.config.num_attention_heads)

    def turns(self, states: torch.Tensor, at: torch.Tensor, size: int) -> Two:
        """Cosines and sines ``[tokens, size]`` by which heads of ``size`` are turned at places ``at`` ``[tokens]`` of a
        model's window, in the type of ``states`` ``[tokens, d]``. Raises ``ValueError`` where only a part of each head
        is."""
        rotary = self.trunk.rotary_emb
        window = getattr(rotary, "contextmill_window", None) or getattr(self.trunk.config, "max_position_embeddings", 0)
        if getattr(rotary, "rope_type", "") not in _STEADY or not window or window > _LONG:
            return _whole(rotary(states[None], at[None]), size)
        # Made once: it is a dozen small kernels, as long as two layers of a step of decoding.
        if states.dtype not in self.tables:
            every = torch.arange(window, device=at.device)
            self.tables[states.dtype] = _whole(rotary(states[None], every[None]), size)
        cosines, sines = self.tables[states.dtype]
        return cosines[at], sines[at]


def _whole(turns: Two, size: int) -> Two:
    cosines, sines = (one[0].contiguous() for one in turns)
    if cosines.shape[-1] != size:
        raise ValueError("only a part of each head is turned")
    return cosines, sines


def built(trunk: Any) -> Built | None:
    """The trunk's layers, joined before (``joined``), if it is of a kind that is built so."""
    config = trunk.config
    if getattr(config, "model_type", "") not in _KINDS or getattr(config, "hidden_act", "") != "silu":
        return None
    layers = [_layer(one) for one in getattr(trunk, "layers", [])]
    known = tuple(one for one in layers if one is not None)
    alike = all(hasattr(trunk, name) for name in ("embed_tokens", "rotary_emb"))
    norm: Any = getattr(trunk, "norm", None)
    if not alike or not known or len(known) != len(layers) or not hasattr(norm, "variance_epsilon"):
        return None
    return Built(trunk, known, (norm.weight, norm.variance_epsilon))


def _layer(layer: Any) -> Layer | None:
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
    return Layer(before, queries, out.weight, between, gates, down.weight, attention.scaling)


def _joined(inside: Any, name: str) -> Joined | None:
    share = getattr(inside, name, None)
    return share.joined if isinstance(share, Share) else None
