"""Passes without padding: all rows' tokens laid end to end, whole texts or each row after its stored columns.

For half precision on a GPU and models whose layers attend to all that came before, or to all (``packable``): compiled
layers, or kernels of our own (``wide``). Keys and values are read where they are by the attention kernel
(FlashAttention over rows of different lengths), those to be stored after they went straight to their place: no mask, no
copy, no repeated heads. ``padded`` does the same for any other model or machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput

from pipeline.passes.fused import MOST, Fused
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import on_device
from pipeline.passes.vectors import Vectors, embedded, input_of
from pipeline.passes.wide import Wide

Ints = NDArray[np.int64]

ATTENTION = "contextmill_packed"
"""The name of the attention below among those that transformers knows."""

Store = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Places of tokens in a layer's keys and values, and these: ``[tokens]``, ``[columns, heads, size]`` each."""

_COLUMNS = 128
"""The store grows by so many columns."""

SPARE = 64
"""Columns behind those of all rows, for a row that only fills up, and most tokens that a row may ``read_on`` by."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Where the tokens of one pass belong.

    Row r of the pass has the tokens from ``begins[r]`` to ``begins[r + 1]``, ``longest`` or fewer. Its columns begin at
    ``first[r]`` of the store ``[rows x capacity, heads, size]`` and are ``used[r]``, at most ``most_used``, new ones
    included; ``slots`` says where in the store each new token goes. Without a store the columns are the pass's own.
    """

    begins: torch.Tensor
    first: torch.Tensor
    used: torch.Tensor
    longest: int
    most_used: int
    slots: torch.Tensor | None = None
    keys: list[torch.Tensor] | None = None
    values: list[torch.Tensor] | None = None

    def layer(self, number: int) -> dict[str, Any]:
        """What the attention of this layer is told."""
        told = {
            "begins": self.begins, "first": self.first, "used": self.used, "longest": self.longest,
            "most_used": self.most_used,
        }  # fmt: skip
        if self.keys is None or self.values is None:
            return told
        return {**told, "slots": self.slots, "keys": self.keys[number], "values": self.values[number]}

    def store(self, number: int) -> Store | None:
        """Of this layer: where new tokens go, keys and values."""
        if self.slots is None or self.keys is None or self.values is None:
            return None
        return self.slots, self.keys[number], self.values[number]

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """As ``attend``, of a causal model."""
        where = self.begins, self.first, self.used, self.longest, self.most_used
        return flash(query, keys, values, *where, True, scale)


@dataclass(frozen=True, slots=True)
class Step:
    """Where ``new`` tokens of each row belong: behind ``stored[r]`` columns that begin at ``first[r]`` of the store.

    ``arrived`` is the kernel's (``few``). ``slots`` says where in the store each of them goes, for who does not store
    them by itself (``fused``).
    """

    first: torch.Tensor
    stored: torch.Tensor
    new: int
    arrived: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    slots: torch.Tensor | None = None

    def layer(self, number: int) -> dict[str, Any]:
        """What the attention of this layer is told."""
        return {
            "first": self.first, "stored": self.stored, "new": self.new, "slots": self.slots, "arrived": self.arrived,
            "keys": self.keys[number], "values": self.values[number],
        }  # fmt: skip

    def store(self, number: int) -> Store | None:
        """As of a ``Pack``."""
        return None if self.slots is None else (self.slots, self.keys[number], self.values[number])

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """As of a ``Pack``."""
        found: torch.Tensor = attend_few(query, keys, values, self.first, self.stored, self.arrived, self.new, scale)
        return found


@torch.library.custom_op("contextmill::attend", mutates_args=(), device_types="cuda")
def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, first: torch.Tensor,
    used: torch.Tensor, longest: int, most_used: int, causal: bool, scale: float,
) -> torch.Tensor:  # fmt: skip
    """``query`` ``[tokens, heads, size]`` of each row over its columns of the store, as in ``Pack``. If ``causal``, the
    last token sees all of them, the one before all but the last, and so on."""
    return flash(query, keys, values, begins, first, used, longest, most_used, causal, scale)


def flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, first: torch.Tensor,
    used: torch.Tensor, longest: int, most_used: int, causal: bool, scale: float,
) -> torch.Tensor:  # fmt: skip
    """What no compiler sees calls this: a custom operator takes the processor longer than what it does."""
    found: torch.Tensor = torch.ops.aten._flash_attention_forward.default(
        query, keys, values, begins, first, longest, most_used, 0.0, causal, False, scale=scale, seqused_k=used
    )[0]
    return found


@torch.library.custom_op("contextmill::attend_few", mutates_args=(), device_types="cuda")
def attend_few(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, stored: torch.Tensor,
    arrived: torch.Tensor, new: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """``query`` ``[rows * new, heads, size]`` of each row over its columns of the store, as in ``Step``; a token sees
    all columns up to its own."""
    from pipeline.passes import few  # where there is no GPU there is no Triton

    return few.attend_few(query, keys, values, first, stored, arrived, new, scale)


@attend.register_fake
def _(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return query.new_empty(query.shape)


@attend_few.register_fake
def _(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return query.new_empty(query.shape)


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, first: torch.Tensor | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' own attention, but in a packed pass: there ``[1, heads, tokens, size]`` by the operators above."""
    if first is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return found, None
    # Projections give [tokens, heads, size] in memory, as the kernel reads it: these are views.
    asked, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
    if (store := options.get("keys")) is not None:
        store[options["slots"]] = keys
        options["values"][options["slots"]] = values
        keys, values = store, options["values"]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (stored := options.get("stored")) is not None:
        return attend_few(asked, keys, values, first, stored, options["arrived"], options["new"], scale)[None], None
    used, longest, most_used = (options[name] for name in ("used", "longest", "most_used"))
    causal = bool(getattr(module, "is_causal", True))
    return attend(asked, keys, values, options["begins"], first, used, longest, most_used, causal, scale)[None], None


def read_packed(model: Any, ids: torch.Tensor, lengths: Ints, positions: range) -> Any:
    """What ``model`` says of whole texts laid end to end in ``ids`` ``[tokens]``, as one row.

    The tokens of each have ``positions``, what goes beyond them the last one.
    """
    return _call(model, ids, *end_to_end(lengths, positions, ids.device))


def end_to_end(lengths: Ints, positions: range, device: torch.device) -> tuple[torch.Tensor, Pack]:
    """Of whole texts of these ``lengths``: places ``[tokens]`` of their tokens, as in ``read_packed``, and the pass."""
    lengths = np.append(lengths, 0)
    begins = np.append(0, np.cumsum(lengths))
    at = np.minimum(ragged(lengths)[1], len(positions) - 1) + positions.start
    longest = _up(int(lengths.max()), 64)
    starts, used = (on_device(one.astype(np.int32), device) for one in (begins, lengths))
    return on_device(at, device), Pack(starts, starts, used, longest, longest)


def _call(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, pack: Pack | Step, vectors: Vectors | None = None
) -> Any:
    wide: Wide | None = getattr(model, "contextmill_wide", None)
    if wide is not None:
        states = embedded(model, ids, vectors)
        return BaseModelOutput(wide.read(states, positions, pack)[None])
    return model(
        **input_of(model, ids[None], vectors),
        position_ids=positions[None],
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids.device),  # or one would be made
        use_cache=False,
        packed=pack,
    )


class PackedPasses:
    """As ``PaddedPasses``, for a ``trunk`` that can be packed."""

    records: ClassVar[bool] = True
    """Whether a step can be recorded (``recorded``)."""

    def __init__(self, trunk: Any, rows: int, window: int = 2**31 - 1) -> None:
        self.trunk, self.device = trunk, next(trunk.parameters()).device
        self._rows, self._window, self._capacity = rows, window, 0
        self._first = np.zeros(rows + 1, np.int64)  # where in the store the columns of each row begin
        self._begins = torch.zeros(rows + 1, dtype=torch.int64, device=self.device)  # the same
        self._stores: list[torch.Tensor] = []
        self._fused: Fused | None = getattr(trunk, "contextmill_fused", None)
        self.least = 1 if self._fused else 2  # what is compiled would be compiled anew for a single token
        counts = 3 * (rows + 2) * trunk.config.num_attention_heads  # of large heads few make a block
        self._arrived = torch.zeros(counts, dtype=torch.int32, device=self.device)
        self._counted = torch.arange(SPARE, device=self.device)  # once: making it is a kernel of its own

    def reserve(self, columns: int, longest: int) -> None:
        """Before the first pass: a store of ``columns`` for rows of at most ``longest``, each of which is told its
        ``place``. Else the store is a rectangle that grows, and is copied when it does."""
        self._capacity = longest
        for _ in range(2 * self.trunk.config.num_hidden_layers):
            self._stores.append(self._zeros(columns + SPARE))
        self.place(np.array([self._rows]), np.array([columns]))

    def place(self, rows: Ints, begins: Ints) -> None:
        """The columns of ``rows`` begin there from now on."""
        self._first[rows] = begins
        self._begins.copy_(on_device(self._first.copy(), self.device))

    def run(
        self, rows: Ints, ids: torch.Tensor, cached: Ints, counts: Ints, vectors: Vectors | None = None
    ) -> torch.Tensor:
        """As in ``PaddedPasses``."""
        # An empty row at the end: torch would compile anew for a single one.
        places = np.pad(np.stack([self._columns(rows, cached + counts), cached, counts]), ((0, 0), (0, 1)))
        return self._pass(ids, places, _up(int(counts.max()), 64), vectors)

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        """As in ``PaddedPasses``, for ``least`` rows or more. It can be recorded."""
        del most
        new, first = ids.shape[1], self._begins[slots]
        at = stored[:, None] + self._counted[:new] if new > 1 else stored[:, None]
        step = Step(first, stored, new, self._arrived, self._stores[0::2], self._stores[1::2])
        if self._fused and ids.numel() <= MOST:
            return self._fused.read(ids.flatten(), self._inside(at.flatten()), step)
        step = replace(step, slots=(first[:, None] + at).flatten())
        return self._hidden(ids.flatten(), at.flatten(), step)

    def _pass(self, ids: torch.Tensor, places: Ints, longest: int, vectors: Vectors | None) -> torch.Tensor:
        """Hidden states of ``ids`` and ``vectors``; ``places`` are, row by row, its first column of the store, how many
        it has there, and its tokens in ``ids``, ``longest`` or fewer."""
        first, stored, new = on_device(places, ids.device)
        ends = new.cumsum(0)
        # What a row's tokens have in common, once for each of them.
        shift = torch.repeat_interleave(stored - (ends - new), new, output_size=len(ids))
        at = torch.arange(len(ids), device=ids.device) + shift
        pack = Pack(
            begins=torch.nn.functional.pad(ends, (1, 0)).int(),
            first=torch.nn.functional.pad(first, (0, 1)).int(),
            used=(stored + new).int(),
            slots=at + torch.repeat_interleave(first, new, output_size=len(ids)),
            longest=longest,
            most_used=self._capacity,
            keys=self._stores[0::2],
            values=self._stores[1::2],
        )
        return self._hidden(ids, at, pack, vectors)

    def _hidden(
        self, ids: torch.Tensor, at: torch.Tensor, pack: Pack | Step, vectors: Vectors | None = None
    ) -> torch.Tensor:
        output = _call(self.trunk, ids, self._inside(at), pack, vectors)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _inside(self, at: torch.Tensor) -> torch.Tensor:
        """Positions of places: what goes beyond the window has the last one. Where nothing can, that is no kernel."""
        return at if max(self._capacity, SPARE) <= self._window else at.clamp(max=self._window - 1)

    def _columns(self, rows: Ints, ends: Ints) -> Ints:
        """Where the columns of ``rows`` begin; afterwards there is room for ``ends`` of them."""
        self._make_room(int(ends.max()))
        return self._first[rows]

    def copy(self, sources: Ints, targets: Ints, counts: Ints) -> None:
        """As in ``PaddedPasses``."""
        row, column = ragged(counts)
        places = np.stack([self._first[sources][row] + column, self._first[targets][row] + column])
        source, target = on_device(places, self.device)
        for store in self._stores:
            store[target] = store[source]

    def drop(self, row: int, begin: int, end: int, length: int) -> None:
        """Forget columns ``begin`` to ``end`` of the ``length`` of one row; those behind them move up."""
        base = int(self._first[row])
        for store in self._stores:
            store[base + begin : base + begin + length - end] = store[base + end : base + length].clone()

    def _make_room(self, columns: int) -> None:
        if columns <= self._capacity:
            return
        # By a third at least: each growth copies all there is, and frees what the next, larger store cannot use.
        before, capacity = self._capacity, _up(max(columns, self._capacity * 4 // 3), _COLUMNS)
        for number in range(2 * self.trunk.config.num_hidden_layers):
            store = self._zeros(self._rows * capacity)
            if before:
                shape, old = store.shape[1:], self._stores[number]
                store.view(self._rows, capacity, *shape)[:, :before] = old.view(self._rows, before, *shape)
                self._stores[number] = store
            else:
                self._stores.append(store)
        self._capacity = capacity
        self.place(np.arange(self._rows), np.arange(self._rows) * capacity)

    def _zeros(self, columns: int) -> torch.Tensor:
        """Keys or values of one layer, ``[columns, heads, size]``."""
        config, like = self.trunk.config, next(self.trunk.parameters())
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return torch.zeros(columns, heads, size, dtype=like.dtype, device=like.device)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
