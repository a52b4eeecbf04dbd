"""Passes as rectangles padded on the right, each row after its stored columns: any model that keeps keys and values.

``packed`` has the same passes without padding, for fewer models and machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import on_device

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Write:
    """Where the new keys and values that are kept come from in the pass, and go to in the store."""

    from_row: torch.Tensor
    from_column: torch.Tensor
    to_row: torch.Tensor
    to_column: torch.Tensor


class Store:
    """Keys or values of all layers, ``[rows, heads, capacity, size]`` each, grown as needed."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._layers: dict[int, list[torch.Tensor]] = {}

    def past(self, layer: int, like: Sequence[torch.Tensor], rows: Any, width: int) -> list[torch.Tensor]:
        """Keys and values of ``rows``, the first ``width`` columns."""
        if layer not in self._layers:
            self._layers[layer] = [new.new_zeros(self._rows, new.shape[1], 0, new.shape[3]) for new in like]
        return [held[rows, :, :width] for held in self._layers[layer]]

    def write(self, layer: int, new: Sequence[torch.Tensor], write: _Write, capacity: int) -> None:
        """Store the kept columns of ``new``; afterwards there is room for ``capacity`` columns."""
        held = self._layers[layer]
        for kind, states in enumerate(new):
            if held[kind].shape[2] < capacity:
                held[kind] = torch.nn.functional.pad(held[kind], (0, 0, 0, capacity - held[kind].shape[2]))
            held[kind][write.to_row, :, write.to_column] = states[write.from_row, :, write.from_column]

    def drop(self, row: int, begin: int, end: int, length: int) -> None:
        """Forget columns ``begin`` to ``end`` of the ``length`` of one row; those behind them move up."""
        for held in chain.from_iterable(self._layers.values()):
            held[row, :, begin : begin + length - end] = held[row, :, end:length].clone()


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """What a model's attention layer sees of the store during one forward pass."""

    def __init__(self, store: Store, layer: int, rows: Any, width: int, write: _Write, capacity: int) -> None:
        super().__init__()
        self._store, self._layer, self._rows = store, layer, rows
        self._width, self._write, self._capacity = width, write, capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the store begins with the first states it is shown."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values to attend to: the stored ones, then the new ones. What is to be kept is stored."""
        new = (key_states, value_states)
        past = self._store.past(self._layer, new, self._rows, self._width)
        seen = [torch.cat([old, fresh], dim=2) for old, fresh in zip(past, new, strict=True)]
        self._store.write(self._layer, new, self._write, self._capacity)
        return seen[0], seen[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self._width + query_length, 0

    def get_seq_length(self) -> int:
        """Stored columns that are attended to."""
        return self._width

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def keeps_columns(config: Any) -> bool:
    """Whether all layers keep keys and values, a column for each token."""
    return set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}


class PaddedPasses:
    """Forward passes of many rows at once, each after what was stored of it. Nothing is stored yet."""

    def __init__(self, trunk: Any, rows: int, window: int) -> None:
        self.trunk, self.device = trunk, next(trunk.parameters()).device
        self._window, self._store = window, Store(rows)

    def round(self, columns: int) -> int:
        """GPU kernels of masked attention want multiples of eight."""
        return -(-columns // 8) * 8 if self.device.type == "cuda" else columns

    def run(self, rows: Ints, ids: torch.Tensor, cached: Ints, counts: Ints, kept: Ints) -> torch.Tensor:
        """Hidden states ``[tokens, d]`` of the new tokens ``ids``, ``counts[i]`` of row ``rows[i]``, row by row.

        Of row ``rows[i]`` the first ``cached[i]`` columns of the store are attended to; the keys and values of its
        first ``kept[i]`` new tokens go there, behind them.
        """
        device, width, new = self.device, self.round(int(cached.max())), self.round(int(counts.max()))
        from_row, from_column = ragged(counts)
        places = on_device(from_row * new + from_column, device)
        padded = ids.new_zeros(len(rows) * new).index_copy_(0, places, ids).view(len(rows), new)
        stored = on_device(cached, device)
        positions = (stored[:, None] + torch.arange(new, device=device)).clamp(max=self._window - 1)
        output = self.trunk(
            input_ids=padded,
            position_ids=positions,
            attention_mask=self._mask(positions, stored, width),
            past_key_values=Cache(layers=self._layers(rows, cached, kept, width)),
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state.flatten(0, 1)[places]
        return hidden

    def drop(self, row: int, begin: int, end: int, length: int) -> None:
        """Forget columns ``begin`` to ``end`` of the ``length`` of one row; those behind them move up."""
        self._store.drop(row, begin, end, length)

    def _layers(self, rows: Ints, cached: Ints, kept: Ints, width: int) -> list[_Layer]:
        """The store as each layer sees it."""
        device = self.device
        from_row, from_column = ragged(kept)
        write = _Write(*(
            on_device(one, device)
            for one in (from_row, from_column, rows[from_row], cached[from_row] + from_column)
        ))  # fmt: skip
        leading = np.array_equal(rows, np.arange(len(rows)))
        which: Any = slice(0, len(rows)) if leading else on_device(rows, device)
        room = -(-int((cached + kept).max()) // 256) * 256
        numbers = range(self.trunk.config.num_hidden_layers)
        return [_Layer(self._store, layer, which, width, write, room) for layer in numbers]

    def _mask(self, positions: torch.Tensor, cached: torch.Tensor, width: int) -> Any:
        """Who attends to whom, ``[rows, 1, new, width + new]``: the row's own stored columns and the new ones so far.

        Padding sees what precedes it, so that no row of the mask is empty; nothing that counts sees padding.
        """
        rows, new = positions.shape
        columns = torch.arange(width, device=positions.device)
        stored = (columns < cached[:, None])[:, None, None, :].expand(rows, 1, new, width)
        fresh = torch.ones(new, new, dtype=torch.bool, device=positions.device).tril().expand(rows, 1, new, new)
        full = torch.cat([stored, fresh], dim=-1)
        sliding = getattr(self.trunk.config, "sliding_window", None)
        kinds = getattr(self.trunk.config, "layer_types", None) or []
        if not sliding or (kinds and "sliding_attention" not in kinds):
            return full
        keys = torch.cat([columns.expand(rows, width), positions], dim=1)
        near = full & (positions[:, None, :, None] - keys[:, None, None, :] < sliding)
        return {"full_attention": full, "sliding_attention": near} if kinds else near
