"""Compiled passes without padding: all rows' new tokens laid end to end, each row after its own stored columns.

For half precision on a GPU and models whose layers attend to all that came before. Keys and values go straight to
their place in the store, where the attention kernel (FlashAttention over rows of different lengths) reads them: no
mask, no copy of what was stored, no repeated heads. ``passes.Passes`` does the same for any other model or machine.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.compression.transfers import on_device

Ints = NDArray[np.int64]

log = logging.getLogger(__name__)

ATTENTION = "contextmill_packed"
"""The name of the attention below among those that transformers knows."""

_COLUMNS = 128
"""The store grows by so many columns."""

_TOLERANCE = 0.05
"""Most that packed hidden states may be off at first sight: half precision takes a hundredth, another model a third."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Where the tokens of one pass belong.

    Row r of the pass has the tokens from ``begins[r]`` to ``begins[r + 1]``, ``longest`` or fewer. Its columns begin at
    ``first[r]`` of the store ``[rows x capacity, heads, size]`` and are ``used[r]``, the new ones included; ``slots``
    says where in the store each new token goes.
    """

    begins: torch.Tensor
    first: torch.Tensor
    used: torch.Tensor
    slots: torch.Tensor
    longest: int
    most_used: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def layer(self, number: int) -> dict[str, Any]:
        """What the attention of this layer is told."""
        return {
            "begins": self.begins, "first": self.first, "used": self.used, "slots": self.slots,
            "longest": self.longest, "most_used": self.most_used,
            "keys": self.keys[number], "values": self.values[number],
        }  # fmt: skip


@torch.library.custom_op("contextmill::attend", mutates_args=(), device_types="cuda")
def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, first: torch.Tensor,
    used: torch.Tensor, longest: int, most_used: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """``query`` ``[tokens, heads, size]`` of each row over its columns of the store, as in ``Pack``: the last token
    sees all of them, the one before all but the last, and so on."""
    found: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, keys, values, begins, first, longest, most_used, 0.0, True, False, scale=scale, seqused_k=used
    )[0]
    return found


@attend.register_fake
def _(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return query.new_empty(query.shape)


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, keys: torch.Tensor | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' own attention, but in a packed pass: there ``[1, heads, tokens, size]`` by ``attend``."""
    if keys is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return found, None
    values, slots = options["values"], options["slots"]
    keys[slots] = key[0].transpose(0, 1)
    values[slots] = value[0].transpose(0, 1)
    places = [options[name] for name in ("begins", "first", "used", "longest", "most_used")]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query[0].transpose(0, 1), keys, values, *places, scale)[None], None


def can_pack(trunk: Any) -> bool:
    """Make compiled ``trunk`` ready for packed passes; False where it attends in ways of its own or they fail."""
    if not hasattr(trunk, "contextmill_packs"):
        trunk.contextmill_packs = _plain(trunk.config) and _agrees(trunk)
    return bool(trunk.contextmill_packs)


def _plain(config: Any) -> bool:
    """Whether every layer attends to all tokens before, by transformers' attention functions."""
    kinds = getattr(config, "layer_types", None) or []
    sliding = getattr(config, "sliding_window", None) if not kinds else None
    return config._attn_implementation == "sdpa" and not sliding and set(kinds) <= {"full_attention"}


@torch.inference_mode()
def _agrees(trunk: Any) -> bool:
    """Whether two packed passes give the hidden states of a plain one. Until then the attention is not trusted."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before, trunk.config._attn_implementation = trunk.config._attn_implementation, ATTENTION
    try:
        apart = _apart(trunk)
    except Exception as error:  # noqa: BLE001  compilers, kernels and models fail in ways of their own
        why = " ".join(str(error).split())[:300]
    else:
        why = f"it is {apart:.2f} off" if not apart < _TOLERANCE else ""
    if why:
        trunk.config._attn_implementation = before
        log.warning("iterative compression runs uncompiled, at about half the speed: %s", why)
    return not why


def _apart(trunk: Any) -> float:
    device, vocabulary = next(trunk.parameters()).device, trunk.config.vocab_size
    ids = torch.arange(3 * 24, device=device).mul(37).remainder(min(vocabulary, 1000)).reshape(3, 24)
    whole = trunk(input_ids=ids, use_cache=False).last_hidden_state
    passes, rows = PackedPasses(trunk, 3), np.arange(3)
    early, late = np.array([9, 4, 16]), np.array([15, 20, 8])
    none = np.zeros_like(early)
    passes.run(rows, torch.cat([ids[row, : early[row]] for row in rows]), none, early, early)
    found = passes.run(rows, torch.cat([ids[row, early[row] :] for row in rows]), early, late, none)
    expected = torch.cat([whole[row, early[row] :] for row in rows])
    return float((found.float() - expected.float()).norm() / expected.float().norm())


class PackedPasses:
    """As ``passes.Passes``, for a ``trunk`` that ``can_pack``."""

    def __init__(self, trunk: Any, rows: int, window: int = 2**31 - 1) -> None:
        self._trunk, self._rows, self._window, self._capacity = trunk, rows, window, 0
        self._stores: list[torch.Tensor] = []

    def run(self, rows: Ints, ids: torch.Tensor, cached: Ints, counts: Ints, kept: Ints) -> torch.Tensor:
        """As in ``passes.Passes``. All new keys and values are stored; those behind ``kept`` will be overwritten."""
        del kept
        self._make_room(ids.device, int((cached + counts).max()))
        places = on_device(np.stack([rows, cached, counts]), ids.device)
        row, stored, new = places
        ends = new.cumsum(0)
        # What a row's tokens have in common, once for each of them.
        shift = torch.repeat_interleave(stored - (ends - new), new, output_size=len(ids))
        at = torch.arange(len(ids), device=ids.device) + shift
        first = row * self._capacity
        pack = Pack(
            begins=torch.nn.functional.pad(ends, (1, 0)).int(),
            first=torch.nn.functional.pad(first, (0, 1)).int(),
            used=(stored + new).int(),
            slots=at + torch.repeat_interleave(first, new, output_size=len(ids)),
            longest=_up(int(counts.max()), 64),
            most_used=self._capacity,
            keys=self._stores[0::2],
            values=self._stores[1::2],
        )
        output = self._trunk(
            input_ids=ids[None],
            position_ids=at.clamp(max=self._window - 1)[None],
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids.device),  # or one would be made
            use_cache=False,
            packed=pack,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def drop(self, row: int, begin: int, end: int, length: int) -> None:
        """Forget columns ``begin`` to ``end`` of the ``length`` of one row; those behind them move up."""
        base = row * self._capacity
        for store in self._stores:
            store[base + begin : base + begin + length - end] = store[base + end : base + length].clone()

    def _make_room(self, device: torch.device, columns: int) -> None:
        if columns <= self._capacity:
            return
        config, capacity = self._trunk.config, _up(columns, _COLUMNS)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        before, dtype = self._capacity, next(self._trunk.parameters()).dtype
        for number in range(2 * config.num_hidden_layers):
            store = torch.zeros(self._rows, capacity, heads, size, dtype=dtype, device=device)
            if before:
                store[:, :before] = self._stores[number].view(self._rows, before, heads, size)
                self._stores[number] = store.flatten(0, 1)
            else:
                self._stores.append(store.flatten(0, 1))
        self._capacity = capacity


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
