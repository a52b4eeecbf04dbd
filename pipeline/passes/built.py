"""What models built as Llama is are made of: their modules say which these are, ``packable`` sees whether it is so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from pipeline.passes.joined import Share

_KINDS = frozenset({"llama", "qwen2", "mistral"})
"""Of models: others differ where no modules show it, some only after thousands of tokens."""

_STEADY = frozenset({"default", "linear", "llama3", "yarn"})
"""Of rotary embeddings: a place is turned alike, whatever other places are read."""

_LONG = 2**18
"""Places that are tabled at most: 128 MiB of the largest heads."""

Two = tuple[torch.Tensor, torch.Tensor]

Norm = tuple[nn.Parameter, float]
"""An RMS norm's weights, and what it adds to mean squares."""


class Product(Protocol):
    """Projections of one input as one: ``weight`` ``[out, in]`` and ``bias`` ``[out]``. Asking may be computing: who
    reads asks once a pass, and lets go of what came of it."""

    @property
    def weight(self) -> torch.Tensor: ...  # noqa: D102

    @property
    def bias(self) -> torch.Tensor | None: ...  # noqa: D102


Find = Callable[[Any, Sequence[str]], Product | None]
"""The product of the projections of a module that are called so; None where they are none."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer is made of: ``queries`` of keys and values as well, ``gates`` of what they let through as well."""

    before: Norm
    queries: Product
    out: Product
    between: Norm
    gates: Product
    down: Product
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

    @property
    def size(self) -> int:
        """Of a head."""
        config = self.trunk.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def window(self) -> int:
        """Places that the model knows; 0 where it does not say."""
        config, rotary = self.trunk.config, self.trunk.rotary_emb
        known: int | None = getattr(rotary, "contextmill_window", None)
        return known or int(getattr(config, "max_position_embeddings", 0))

    def turns(self, states: torch.Tensor, at: torch.Tensor, size: int) -> Two:
        """Cosines and sines ``[tokens, size]`` by which heads of ``size`` are turned at places ``at`` ``[tokens]`` of a
        model's window, in the type of ``states`` ``[tokens, d]``. Raises ``ValueError`` where only a part of each head
        is."""
        rotary, window = self.trunk.rotary_emb, self.window
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


def joined(inside: Any, names: Sequence[str]) -> Product | None:
    """What was joined before (``joined``), or a linear layer."""
    one = getattr(inside, names[0], None)
    if len(names) == 1:
        return one if type(one) is nn.Linear else None
    return one.joined if isinstance(one, Share) and len(one.joined.sizes) == len(names) else None


def built(trunk: Any, find: Find = joined) -> Built | None:
    """The trunk's layers, of the products that ``find`` finds, if it is of a kind that is built so."""
    config = trunk.config
    if getattr(config, "model_type", "") not in _KINDS or getattr(config, "hidden_act", "") != "silu":
        return None
    layers = [_layer(one, find) for one in getattr(trunk, "layers", [])]
    known = tuple(one for one in layers if one is not None)
    alike = type(getattr(trunk, "embed_tokens", None)) is nn.Embedding and hasattr(trunk, "rotary_emb")
    norm: Any = getattr(trunk, "norm", None)
    if not alike or not known or len(known) != len(layers) or not hasattr(norm, "variance_epsilon"):
        return None
    return Built(trunk, known, (norm.weight, norm.variance_epsilon))


def _layer(layer: Any, find: Find) -> Layer | None:
    attention: Any = getattr(layer, "self_attn", None)
    mlp: Any = getattr(layer, "mlp", None)
    norms: list[Any] = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    queries, out = find(attention, ("q_proj", "k_proj", "v_proj")), find(attention, ("o_proj",))
    gates, down = find(mlp, ("gate_proj", "up_proj")), find(mlp, ("down_proj",))
    if queries is None or out is None or gates is None or down is None:
        return None
    if getattr(attention, "scaling", None) is None or any(one.bias is not None for one in (out, gates, down)):
        return None
    if not all(hasattr(norm, "variance_epsilon") for norm in norms) or hasattr(attention, "q_norm"):
        return None
    if len(list(layer.children())) != 4:
        return None
    before, between = ((norm.weight, norm.variance_epsilon) for norm in norms)
    return Layer(before, queries, out, between, gates, down, attention.scaling)
