"""Low-rank weights added to those they stand beside while a pass reads them, product by product.

Beside each product two small ones take as long as launches and memory let them, for every token; the sum is made once a
pass, for all its tokens, and let go before the next product: one copy of the model, the low-rank weights and one
product more is all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.memory.lowrank import LowRank
from pipeline.passes.built import Product


class Merged:
    """Projections of one input, some with low-rank weights, as one product, made whenever it is asked for."""

    def __init__(self, parts: Sequence[nn.Linear | LowRank]) -> None:
        self._parts = parts
        self._linears = [one.linear if isinstance(one, LowRank) else one for one in parts]

    @property
    def weight(self) -> torch.Tensor:
        """``[out, in]``."""
        weights = [one.weight for one in self._linears]
        if len(self._parts) > 1 and not any(isinstance(one, LowRank) for one in self._parts):
            return _whole(weights)
        found = weights[0].new_empty(sum(map(len, weights)), weights[0].shape[1])
        rooms = torch.split(found, [len(one) for one in weights])
        for part, weight, room in zip(self._parts, weights, rooms, strict=True):
            if isinstance(part, LowRank):
                part.merge(room)
            else:
                room.copy_(weight)
        return found

    @property
    def bias(self) -> torch.Tensor | None:
        """``[out]``."""
        biases = [one.bias for one in self._linears if one.bias is not None]
        return _whole(biases) if biases else None


def merging(inside: Any, names: Sequence[str]) -> Product | None:
    """What stands in ``inside`` under these ``names`` as one product (``built.Find``)."""
    parts: list[Any] = [getattr(inside, name, None) for name in names]
    if not all(type(one) in (nn.Linear, LowRank) and not one._forward_hooks for one in parts):
        return None
    linears = [one.linear if isinstance(one, LowRank) else one for one in parts]
    if any(type(one) is not nn.Linear for one in linears) or len({one.bias is None for one in linears}) > 1:
        return None
    return linears[0] if parts == linears[:1] else Merged(parts)


def _whole(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One behind the other: as they lie, where they lie so (the model that answers has ``joined`` them)."""
    first, end = parts[0], parts[0].data_ptr()
    for one in parts:
        if one.data_ptr() != end or not one.is_contiguous():
            return torch.cat(list(parts))
        end += one.nbytes
    held = first.untyped_storage()
    if end > held.data_ptr() + held.nbytes():  # neighbours by chance
        return torch.cat(list(parts))
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())
