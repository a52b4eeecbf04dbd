"""Projections of one input as one matrix product: queries, keys and values; gate and up.

In a step of decoding each product takes as long as its launch and the reading of its weights let it: three small ones
take twice as long as one. Weights are laid out anew once, and take no more memory: who else held those that were apart
holds a part of the whole from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_TOGETHER = ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("gate_proj", "up_proj")
"""Names that transformers gives to projections of the same input."""


class Joined(nn.Module):
    """Several projections of the same input. What was computed is kept until each of them has had its share."""

    def __init__(self, projections: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [one.out_features for one in projections]
        biases = [one.bias for one in projections if one.bias is not None]
        self.weight = nn.Parameter(torch.cat([one.weight.data for one in projections]), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([one.data for one in biases]), requires_grad=False) if biases else None
        for weight, one in zip(torch.split(self.weight.data, self.sizes), projections, strict=True):
            one.weight.data = weight
        if self.bias is not None:
            for bias, each in zip(torch.split(self.bias.data, self.sizes), biases, strict=True):
                each.data = bias
        self.held: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None

    def share(self, number: int, given: torch.Tensor) -> torch.Tensor:
        """What projection ``number`` makes of ``given``."""
        held = self.held  # read once: another thread may compute the same of its own input meanwhile
        if held is None or held[0] is not given:
            found = nn.functional.linear(given, self.weight, self.bias)
            held = given, torch.split(found, self.sizes, -1)
        self.held = None if number == len(self.sizes) - 1 else held
        return held[1][number]


class Share(nn.Module):
    """Projection ``number`` of those that are ``joined``."""

    def __init__(self, joined: Joined, number: int) -> None:
        super().__init__()
        self.joined, self.number = joined, number
        self.in_features, self.out_features = joined.weight.shape[1], joined.sizes[number]

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        return self.joined.share(self.number, given)

    def plain(self) -> nn.Linear:
        """The projection as it was, over its part of what is joined."""
        made = nn.Linear(self.in_features, self.out_features, bias=self.joined.bias is not None, device="meta")
        whole = {"weight": self.joined.weight, "bias": self.joined.bias}
        for name, one in whole.items():
            if one is not None:
                part = torch.split(one.data, self.joined.sizes)[self.number]
                setattr(made, name, nn.Parameter(part, requires_grad=False))
        return made.eval()


@torch.inference_mode(False)  # no gradient goes through what is made in it, and slots are fitted through these weights
def join(layer: nn.Module) -> None:
    """Projections of ``layer`` that belong together become one product. Others stay as they are."""
    for module in list(layer.modules()):
        for names in _TOGETHER:
            parts: list[Any] = [getattr(module, name, None) for name in names]
            if _alike(parts):
                joined = Joined(parts)
                for number, name in enumerate(names):
                    setattr(module, name, Share(joined, number))


def _alike(parts: Sequence[Any]) -> bool:
    """Plain linear maps of the same input: nothing quantised, adapted or hooked."""
    if any(type(one) is not nn.Linear or one._forward_hooks or one._forward_pre_hooks for one in parts):
        return False
    kinds = {(one.in_features, one.weight.dtype, one.weight.device, one.bias is None) for one in parts}
    return len(kinds) == 1
