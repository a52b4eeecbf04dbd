"""Passes as rectangles padded on the right, each row after its stored columns: any model that keeps keys and values.

``packed`` has the same passes without padding, for fewer models and machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import on_device
from pipeline.passes.vectors import Vectors, input_of

Ints = NDArray[np.int64]

_COLUMNS = 256
"""The store grows by so many columns."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Where the new keys and values of one pass are in it, where in the store they go, and what is attended to: in a
    ``first`` one nothing but themselves."""

    from_row: torch.Tensor
    from_column: torch.Tensor
    to_row: torch.Tensor
    to_column: torch.Tensor
    rows: Any
    width: int
    first: bool


class Store:
    """Keys or values of all layers, ``[rows, heads, capacity, size]`` each, grown as needed."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._layers: dict[int, list[torch.Tensor]] = {}

    def write(self, layer: int, new: Sequence[torch.Tensor], one: Pass) -> list[torch.Tensor]:
        """Store the new ones, and give all that are attended to."""
        if layer not in self._layers:
            self._layers[layer] = [some.new_zeros(self._rows, some.shape[1], 0, some.shape[3]) for some in new]
        held, room = self._layers[layer], -(-one.width // _COLUMNS) * _COLUMNS
        for kind, states in enumerate(new):
            if (more := room - held[kind].shape[2]) > 0:
                held[kind] = torch.nn.functional.pad(held[kind], (0, 0, 0, more))
            held[kind][one.to_row, :, one.to_column] = states[one.from_row, :, one.from_column]
        return self.read(layer, one)

    def read(self, layer: int, one: Pass) -> list[torch.Tensor]:
        """All that are attended to, ``[rows, heads, width, size]``."""
        return [states[one.rows, :, : one.width] for states in self._layers[layer]]

    def copy(self, source: int, target: int, count: int) -> None:
        """The first ``count`` columns of a row to another."""
        for held in chain.from_iterable(self._layers.values()):
            held[target, :, :count] = held[source, :, :count]

    def drop(self, row: int, begin: int, end: int, length: int) -> None:
        """Forget columns ``begin`` to ``end`` of the ``length`` of one row; those behind them move up."""
        for held in chain.from_iterable(self._layers.values()):
            held[row, :, begin : begin + length - end] = held[row, :, end:length].clone()


class Layer(CacheLayerMixin):  # type: ignore[misc]
    """What a model's attention layer sees of the store during one forward pass."""

    def __init__(self, store: Store, layer: int, one: Pass) -> None:
        super().__init__()
        self._store, self._layer, self._pass = store, layer, one

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the store begins with the first states it is shown."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values to attend to, the new ones where they belong."""
        keys, values = self._store.write(self._layer, (key_states, value_states), self._pass)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self._pass.width, 0

    def get_seq_length(self) -> int:
        """Columns that are attended to, but for the new ones; asked for in a first pass only."""
        return 0 if self._pass.first else self._pass.width

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def keeps_columns(config: Any) -> bool:
    """Whether all layers keep keys and values, a column for each token."""
    return set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}


class PaddedPasses:
    """Forward passes of many rows at once, each after what was stored of it. Nothing is stored yet."""

    records: ClassVar[bool] = False
    least = 1

    def __init__(self, trunk: Any, rows: int, window: int) -> None:
        self.trunk, self.device = trunk, next(trunk.parameters()).device
        self._window, self._store = window, Store(rows)

    def round(self, columns: int) -> int:
        """GPU kernels of masked attention want multiples of eight."""
        return -(-columns // 8) * 8 if self.device.type == "cuda" else columns

    def run(
        self, rows: Ints, ids: torch.Tensor, cached: Ints, counts: Ints, vectors: Vectors | None = None
    ) -> torch.Tensor:
        """Hidden states ``[tokens, d]`` of the new tokens ``ids``, ``counts[i]`` of row ``rows[i]``, row by row; in
        place of some of them ``vectors`` are read.

        Of row ``rows[i]`` the first ``cached[i]`` columns of the store are attended to; keys and values of its new
        tokens go behind them, over what was there. Fewer are forgotten by being left out of ``cached`` next time.
        """
        device, width, new = self.device, self.round(int((cached + counts).max())), self.round(int(counts.max()))
        row, column = ragged(counts)
        places, from_row, from_column, to_row, to_column = on_device(
            np.stack([row * new + column, row, column, rows[row], cached[row] + column]), device
        )
        leading = np.array_equal(rows, np.arange(len(rows)))
        which: Any = slice(0, len(rows)) if leading else on_device(rows, device)
        first = new == width and not cached.any()
        one = Pass(from_row, from_column, to_row, to_column, which, width, first)
        padded = ids.new_zeros(len(rows) * new).index_copy_(0, places, ids).view(len(rows), new)
        positions = on_device(cached, device)[:, None] + torch.arange(new, device=device)
        if vectors is not None:
            vectors = Vectors(places[vectors.at], vectors.states)
        return self._pass(padded, positions, one, vectors).flatten(0, 1)[places]

    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, one: Pass, vectors: Vectors | None = None
    ) -> torch.Tensor:
        """Hidden states ``[rows, new, d]``."""
        layers = [Layer(self._store, layer, one) for layer in range(self.trunk.config.num_hidden_layers)]
        output = self.trunk(
            **input_of(self.trunk, ids, vectors),
            position_ids=positions.clamp(max=self._window - 1),
            # Without one transformers reads texts as texts, and spares half of the attention's work.
            attention_mask=None if one.first else self._mask(positions, one.width),
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        """Hidden states ``[rows * new, d]`` of ``ids`` ``[rows, new]`` after the first ``stored`` columns of the rows
        ``slots``, where their keys and values go, too. No row has more than ``most`` columns afterwards."""
        number, new = ids.shape
        positions = stored[:, None] + torch.arange(new, device=self.device)
        row = torch.arange(number, device=self.device)
        column = torch.arange(new, device=self.device)
        which: Any = slice(0, number) if self.device.type == "cpu" and bool((slots == row).all()) else slots
        one = Pass(
            from_row=row[:, None].expand(number, new).flatten(),
            from_column=column.repeat(number),
            to_row=slots[:, None].expand(number, new).flatten(),
            to_column=positions.flatten(),
            rows=which,
            width=self.round(most),
            first=False,
        )
        return self._pass(ids, positions, one).flatten(0, 1)

    def reserve(self, columns: int, longest: int) -> None:
        """Nothing: the store grows as it is needed."""

    def place(self, rows: Ints, begins: Ints) -> None:
        """Nothing: every row has a place of its own."""

    def copy(self, sources: Ints, targets: Ints, counts: Ints) -> None:
        """The first ``counts`` columns of rows ``sources`` to rows ``targets``, which are others."""
        for source, target, count in zip(sources.tolist(), targets.tolist(), counts.tolist(), strict=True):
            self._store.copy(source, target, count)

    def drop(self, row: int, begin: int, end: int, length: int) -> None:
        """Forget columns ``begin`` to ``end`` of the ``length`` of one row; those behind them move up."""
        self._store.drop(row, begin, end, length)

    def _mask(self, positions: torch.Tensor, width: int) -> Any:
        """Who attends to whom, ``[rows, 1, new, width]``: the row's own columns up to the token's.

        Padding sees what precedes it and what was stored there before; nothing that counts sees padding.
        """
        apart = positions[:, None, :, None] - torch.arange(width, device=positions.device)
        full = apart >= 0
        sliding = getattr(self.trunk.config, "sliding_window", None)
        kinds = getattr(self.trunk.config, "layer_types", None) or []
        if not sliding or (kinds and "sliding_attention" not in kinds):
            return full
        near = full & (apart < sliding)
        return {"full_attention": full, "sliding_attention": near} if kinds else near
