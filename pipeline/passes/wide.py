"""Passes of many tokens in nine launches a layer, for models built as Llama is: products and attention of libraries,
and kernels of our own between them.

Compiled layers are as fast on the GPU. But what calls them (guards, wrappers, twenty launches) takes the processor
about 0.9 ms a layer, however little there is to read: as long as the GPU takes for 50,000 tokens of a small model, and
while Python does that it prepares nothing. And they are compiled for half a minute before the first text is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from pipeline.passes.built import Built, Layer
from pipeline.passes.compiling import LAUNCHING

if TYPE_CHECKING:
    from pipeline.passes.packed import Pack, Step


class Wide:
    """The layers of a model, read side by side with what calls them."""

    def __init__(self, model: Built) -> None:
        self._model = model

    @property
    def trunk(self) -> Any:
        """Whose layers they are."""
        return self._model.trunk

    @property
    def window(self) -> int:
        """Places that it knows; 0 where it does not say."""
        return self._model.window

    def read(self, states: torch.Tensor, at: torch.Tensor, pack: Pack | Step) -> torch.Tensor:
        """Hidden states ``[tokens, d]`` of embeddings ``states`` ``[tokens, d]``, which are written over, at places
        ``at``, as ``pack`` has them."""
        with LAUNCHING, torch.cuda.device_of(states):  # type: ignore[no-untyped-call]
            return self._read(states, at, pack)

    def _read(self, states: torch.Tensor, at: torch.Tensor, pack: Pack | Step) -> torch.Tensor:
        from pipeline.passes import between  # where there is no GPU there is no Triton

        model = self._model
        turns = model.turns(states, at, size := model.size)

        def attended(layer: Layer, number: int) -> torch.Tensor:
            projected = linear(between.norm(states, *layer.before), layer.queries.weight, layer.queries.bias)
            query, keys, values = between.turn(projected, turns, model.heads, size, pack.store(number))
            return pack.attend(query, keys, values, layer.scale).flatten(1)

        def gated(layer: Layer) -> torch.Tensor:
            return between.gate(linear(between.norm(states, *layer.between), layer.gates.weight))

        # What comes of either is held by nobody else: a name for it here would keep it while the next is made. Nor are
        # weights, which may be made to be read once (``built.Product``).
        for number, layer in enumerate(model.layers):
            states.addmm_(attended(layer, number), layer.out.weight.T)
            states.addmm_(gated(layer), layer.down.weight.T)
        return between.norm(states, *model.last)
