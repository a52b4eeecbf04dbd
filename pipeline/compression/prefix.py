"""The compressed prefixes of many documents at once: their tokens, and the keys and values of these tokens.

Row r holds ``length[r]`` tokens, of which the first ``cached[r]`` have keys and values. The last token is never cached:
its hidden state predicts the first token of whatever is scored next, so it always goes through the model again.
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

from pipeline.compression.scoring import Scorer, on_device
from pipeline.models import ModelError

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


class Passes:
    """Forward passes of many rows at once, each after what was stored of it. Nothing is stored yet."""

    def __init__(self, scorer: Scorer, rows: int) -> None:
        kinds = set(getattr(scorer.config, "layer_types", None) or ["full_attention"])
        if kinds - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"{scorer.config.model_type}: layers of kind {', '.join(sorted(kinds))} keep no keys and values that "
                "could be reused; score with a model of plain attention layers"
            )
        self._scorer, self.store = scorer, Store(rows)

    def round(self, columns: int) -> int:
        """GPU kernels of masked attention want multiples of eight."""
        return -(-columns // 8) * 8 if self._scorer.device.type == "cuda" else columns

    def run(self, rows: Ints, ids: torch.Tensor, cached: Ints, kept: Ints) -> torch.Tensor:
        """Hidden states ``[rows, new, d]`` of the new tokens ``ids`` of these rows.

        Of row ``rows[i]`` the first ``cached[i]`` columns of the store are attended to; the keys and values of its
        first ``kept[i]`` new tokens go there, behind them. ``ids`` is as wide as ``round`` says.
        """
        device, width = self._scorer.device, self.round(int(cached.max()))
        from_row = np.repeat(np.arange(len(rows)), kept)
        from_column = np.arange(len(from_row)) - np.repeat(np.cumsum(kept) - kept, kept)
        write = _Write(*(
            on_device(one, device)
            for one in (from_row, from_column, rows[from_row], cached[from_row] + from_column)
        ))  # fmt: skip
        leading = np.array_equal(rows, np.arange(len(rows)))
        which: Any = slice(0, len(rows)) if leading else on_device(rows, device)
        room = -(-int((cached + kept).max()) // 256) * 256
        layers = [
            _Layer(self.store, layer, which, width, write, room)
            for layer in range(self._scorer.config.num_hidden_layers)
        ]
        stored = on_device(cached, device)
        positions = (stored[:, None] + torch.arange(ids.shape[1], device=device)).clamp(max=self._scorer.window - 1)
        output = self._scorer.trunk(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._mask(positions, stored, width),
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _mask(self, positions: torch.Tensor, cached: torch.Tensor, width: int) -> Any:
        """Who attends to whom, ``[rows, 1, new, width + new]``: the row's own stored columns and the new ones so far.

        Padding sees what precedes it, so that no row of the mask is empty; nothing that counts sees padding.
        """
        rows, new = positions.shape
        columns = torch.arange(width, device=positions.device)
        stored = (columns < cached[:, None])[:, None, None, :].expand(rows, 1, new, width)
        fresh = torch.ones(new, new, dtype=torch.bool, device=positions.device).tril().expand(rows, 1, new, new)
        full = torch.cat([stored, fresh], dim=-1)
        sliding = getattr(self._scorer.config, "sliding_window", None)
        kinds = getattr(self._scorer.config, "layer_types", None) or []
        if not sliding or (kinds and "sliding_attention" not in kinds):
            return full
        keys = torch.cat([columns.expand(rows, width), positions], dim=1)
        near = full & (positions[:, None, :, None] - keys[:, None, None, :] < sliding)
        return {"full_attention": full, "sliding_attention": near} if kinds else near


class Prefixes:
    """The prefixes of ``starts`` (at least one token each), ready to grow. No keys and values are computed yet."""

    def __init__(self, scorer: Scorer, starts: Sequence[Ints]) -> None:
        starts = [ids[-scorer.prefix :] for ids in starts]  # make_room drops more, should it not suffice
        self._scorer, self._passes = scorer, Passes(scorer, len(starts))
        self.length = np.array([len(ids) for ids in starts], dtype=np.int64)
        self.cached = np.zeros(len(starts), dtype=np.int64)
        self._ids = np.zeros((len(starts), int(self.length.max())), dtype=np.int64)
        for row, ids in enumerate(starts):
            self._ids[row, : len(ids)] = ids

    def extend(self, rows: Ints, ids: Ints) -> None:
        """Append the tokens ``ids`` to the rows named beside them (``rows`` does not decrease)."""
        counts = np.bincount(rows, minlength=len(self.length))
        if (need := int((self.length + counts).max())) > self._ids.shape[1]:
            self._ids = np.pad(self._ids, ((0, 0), (0, need + 256 - self._ids.shape[1])))
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._ids[rows, self.length[rows] + within] = ids
        self.length = self.length + counts

    def make_room(self, rows: Ints, tokens: Ints) -> None:
        """Where ``tokens`` more would exceed ``Scorer.prefix``, go on from the last half of it, computed anew."""
        half = self._scorer.prefix // 2
        for row in rows[self.length[rows] + tokens > self._scorer.prefix].tolist():
            keep = min(half, int(self.length[row]))
            self._ids[row, :keep] = self._ids[row, self.length[row] - keep : self.length[row]].copy()
            self.length[row], self.cached[row] = keep, 0

    def catch_up(self, rows: Ints, most: int) -> None:
        """Compute keys and values until no row has more than ``most`` tokens without."""
        while len(late := rows[self.length[rows] - self.cached[rows] > most]):
            step = max(1, self._scorer.batch_tokens // len(late))
            self._forward(late, np.minimum(step, self.length[late] - 1 - self.cached[late]), None, None)

    def score(self, rows: Ints, segment: Ints, counts: Ints) -> NDArray[np.float32]:
        """Nats of every segment token after its row's prefix and the segment's own earlier tokens (equation 5).

        Row ``rows[i]``'s segment has ``counts[i]`` of the tokens in ``segment``. Keys and values of the prefix are
        reused, those of its new tokens computed and kept, those of the segment forgotten.
        """
        return self._forward(rows, self.length[rows] - self.cached[rows], segment, counts)

    def _forward(self, rows: Ints, feed: Ints, segment: Ints | None, counts: Ints | None) -> NDArray[np.float32]:
        """One pass over ``feed`` uncached tokens of each row and the segment after them; all but a row's last token
        of its prefix are cached."""
        more = np.zeros_like(feed) if counts is None else counts
        new = np.arange(self._passes.round(int((feed + more).max())))
        cached = self.cached[rows]
        ids = np.zeros((len(rows), len(new)), dtype=np.int64)
        columns = np.minimum(cached[:, None] + new, self._ids.shape[1] - 1)
        fed, asked = new < feed[:, None], (new >= feed[:, None]) & (new < (feed + more)[:, None])
        ids[fed] = self._ids[rows[:, None], columns][fed]
        if segment is not None:
            ids[asked] = segment
        kept = np.minimum(feed, self.length[rows] - 1 - cached)
        hidden = self._passes.run(rows, on_device(ids, self._scorer.device), cached, kept)
        self.cached[rows] = cached + kept
        if segment is None:
            return np.zeros(0, np.float32)
        return self._scorer.surprisal_at(hidden, np.flatnonzero(asked) - 1, segment)()
