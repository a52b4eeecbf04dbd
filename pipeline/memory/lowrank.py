"""Low-rank weights beside frozen ones (LoRA, Hu et al. 2021), on for the encoder and off for the decoder: one copy of a
model is both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(slots=True)
class Switch:
    """Whether the low-rank weights of a model count."""

    on: bool = False

    @contextmanager
    def turned(self, on: bool) -> Iterator[None]:
        """For the length of the block."""
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before


MANY = 2048
"""Tokens from which on a GPU learns faster through merged weights."""


def pays(given: torch.Tensor) -> bool:
    """Whether to learn through merged weights: beside the layer's product the low-rank ones are small, but each reads
    or writes all tokens once more, on the way back as well. It takes a copy of the weights, and twice the operations
    of their gradient: too much for a few tokens, and where operations are what takes time."""
    return given.is_cuda and given.numel() >= MANY * given.shape[-1]


class LowRank(nn.Module):
    """A linear layer plus ``scale`` B A; B is 0 at first."""

    def __init__(self, linear: Any, rank: int, scale: float, switch: Switch) -> None:
        super().__init__()
        self.linear, self.scale, self.switch = linear, scale, switch
        self.plain = type(linear) is nn.Linear
        device, shape = linear.weight.device, linear.weight.shape
        out, into = reversed(shape) if isinstance(linear, Conv1D) else shape
        self.lora_A = nn.Parameter(torch.empty(rank, into, device=device))
        self.lora_B = nn.Parameter(torch.zeros(out, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        if self.switch.on and self.plain and torch.is_grad_enabled() and pays(given) and self.lora_A.requires_grad:
            merged = self.linear.weight + self.lora_B @ self.lora_A * self.scale
            return nn.functional.linear(given, merged.to(given.dtype), self.linear.bias)
        found: torch.Tensor = self.linear(given)
        if not self.switch.on:
            return found
        down, up = self.lora_A.to(given.dtype), self.lora_B.to(given.dtype)
        low = nn.functional.linear(given, down)
        if torch.is_grad_enabled() or not found.is_contiguous():
            return found + nn.functional.linear(low, up) * self.scale
        # The product adds to what is there: no pass more over it. Under autocast that may be of another dtype.
        found.flatten(0, -2).addmm_(low.flatten(0, -2).to(found.dtype), up.to(found.dtype).T, alpha=self.scale)
        return found

    @torch.no_grad()
    def merge(self, into: torch.Tensor) -> None:
        """Write the weights that alone do what all of these do together, ``[out, in]``."""
        weight = self.linear.weight
        down, up = self.lora_A.to(weight.dtype), self.lora_B.to(weight.dtype)
        if into.is_cuda:
            from pipeline.passes import sums  # where there is no GPU there is no Triton

            sums.add(weight, up, down, self.scale, into)
        else:
            torch.addmm(weight, up, down, alpha=self.scale, out=into)


def adapt(trunk: Any, rank: int, alpha: float, targets: Sequence[str]) -> Switch:
    """Give linear layers of ``trunk`` low-rank weights, as ``layers_of`` finds them."""
    switch = Switch()
    for name, linear in layers_of(trunk, targets).items():
        parent, _, last = name.rpartition(".")
        setattr(trunk.get_submodule(parent), last, LowRank(linear, rank, alpha / rank, switch))
    return switch


def layers_of(trunk: Any, targets: Sequence[str]) -> dict[str, Any]:
    """Linear layers by their names: those whose name ends in one of ``targets``, or all. Raises ``ValueError`` for a
    target that none is called, or where there is no linear layer."""
    layers = {name: one for name, one in trunk.named_modules() if isinstance(one, nn.Linear | Conv1D)}
    known = sorted({name.rpartition(".")[2] for name in layers})
    if unknown := sorted({*targets} - {*known}) if targets or known else ["anything"]:
        raise ValueError(f"no linear layer is called {' or '.join(unknown)}; there are {', '.join(known) or 'none'}")
    return {name: one for name, one in layers.items() if not targets or name.rpartition(".")[2] in targets}
