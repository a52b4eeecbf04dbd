"""Steps of decoding in five launches a layer, for models built as Llama is: attention and products of few tokens with
all that stands between them.

Compiled layers take a dozen launches, each of which waits for the one before; with few tokens that is most of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.passes.built import Built
from pipeline.passes.compiling import LAUNCHING

if TYPE_CHECKING:
    from pipeline.passes.packed import Step

MOST = 16
"""Tokens of a pass: so many take the product kernel no longer than one."""


class Fused:
    """The layers of a model, read by kernels of our own."""

    def __init__(self, model: Built) -> None:
        self._model = model
        weight = model.layers[0].out.weight
        self._arrived = torch.zeros(max(weight.shape), dtype=torch.int32, device=weight.device)

    def read(self, ids: torch.Tensor, at: torch.Tensor, step: Step) -> torch.Tensor:
        """Hidden states ``[tokens, d]`` of ``ids`` ``[tokens]``, ``MOST`` or fewer, at places ``at``, as ``step`` has
        them."""
        with LAUNCHING, torch.cuda.device_of(ids):  # type: ignore[no-untyped-call]
            return self._read(ids, at, step)

    def _read(self, ids: torch.Tensor, at: torch.Tensor, step: Step) -> torch.Tensor:
        from pipeline.passes import few, products  # where there is no GPU there is no Triton

        model, arrived = self._model, self._arrived
        stream = products.stream_of(ids, model.trunk.embed_tokens.weight, *model.layers[0].before)
        turns = model.turns(stream.states, at, step.keys[0].shape[-1])
        following = [layer.before for layer in model.layers[1:]] + [model.last]
        for layer, keys, values, norm in zip(model.layers, step.keys, step.values, following, strict=True):
            projected = products.product(stream, layer.queries.weight, arrived, layer.queries.bias)
            attended = few.attend_new(
                projected, turns, keys, values, step.first, step.stored, step.arrived, step.new, model.heads,
                layer.scale,
            )  # fmt: skip
            stream = products.add_product(attended, layer.out.weight, arrived, stream, *layer.between)
            inner = products.product(stream, layer.gates.weight, arrived, paired=True)
            stream = products.add_product(inner, layer.down.weight, arrived, stream, *norm)
        weights, epsilon = model.last
        return nn.functional.rms_norm(stream.states, weights.shape, weights, epsilon)
