"""Which models may be read without padding (``packed``): those whose packed passes were seen to say the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.packed import ATTENTION, PackedPasses, attention, read_packed

log = logging.getLogger(__name__)

_WIDTH = 300
"""Tokens of a text that packed passes are tried with."""

_TOLERANCE = 0.05
"""Most that packed hidden states may be off at first sight: half precision takes a hundredth, another model a third."""


def can_pack(trunk: Any) -> bool:
    """Make compiled ``trunk`` ready for packed passes; False where it attends in ways of its own or they fail.

    An encoder is read whole only, a causal model also after what was stored.
    """
    with LAUNCHING:
        if not hasattr(trunk, "contextmill_packs"):
            trunk.contextmill_packs = _plain(trunk) and _agrees(trunk)
        return bool(trunk.contextmill_packs)


def positions_of(trunk: Any) -> range:
    """The positions of a text's tokens: RoBERTa begins its behind the padding's."""
    for name, one in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(one, torch.nn.Embedding):
            return range(0 if one.padding_idx is None else one.padding_idx + 1, one.num_embeddings)
    return range(2**31 - 1)


def _plain(trunk: Any) -> bool:
    """Whether every layer attends to all tokens (before), by transformers' attention functions."""
    config = trunk.config
    kinds = getattr(config, "layer_types", None) or []
    sliding = getattr(config, "sliding_window", None) if not kinds else None
    ours = getattr(trunk, "_supports_attention_backend", False) and config._attn_implementation == "sdpa"
    return ours and not sliding and set(kinds) <= {"full_attention"}


@torch.inference_mode()
def _agrees(trunk: Any) -> bool:
    """Whether packed passes give the hidden states of a plain one. Until then the attention is not trusted."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before = trunk.config._attn_implementation
    try:
        apart = _apart(trunk)
    except Exception as error:  # noqa: BLE001  compilers, kernels and models fail in ways of their own
        why = " ".join(str(error).split())[:300]
    else:
        why = f"it is {apart:.2f} off" if not apart < _TOLERANCE else ""
    if why:
        trunk.config._attn_implementation = before
        log.warning("the model runs with padding, and uncompiled after stored text, at about half the speed: %s", why)
    return not why


def _apart(trunk: Any) -> float:
    """How far packed passes are off, relative to what a plain one says while transformers still attends."""
    causal = not any(getattr(one, "is_causal", True) is False for one in trunk.modules())
    expected, ask = _after_stored(trunk) if causal else _both_ways(trunk)
    trunk.config._attn_implementation = ATTENTION
    return float((ask().float() - expected.float()).norm() / expected.float().norm())


Trial = tuple[torch.Tensor, Callable[[], torch.Tensor]]
"""What a plain pass says, and what asks packed ones the same."""


def _after_stored(trunk: Any) -> Trial:
    """Rows begun; their beginnings alone; then two of them, in another order, gone on with in a store that grows."""
    ids = _ids(trunk)
    width = ids.shape[1]
    lengths, rows = np.array([width // 3, 4, 2 * width // 3]), np.array([2, 0])
    first = torch.cat([ids[row, :length] for row, length in enumerate(lengths)])
    second = torch.cat([ids[row, lengths[row] :] for row in rows])
    whole = _whole(trunk, ids).view(3, width, -1)
    begun = [whole[row, :length] for row, length in enumerate(lengths)]

    def ask() -> torch.Tensor:
        passes = PackedPasses(trunk, 3)
        alone = read_packed(trunk, first, lengths, positions_of(trunk)).last_hidden_state[0]
        stored = passes.run(np.arange(3), first, np.zeros(3, np.int64), lengths, lengths)
        left = width - lengths[rows]
        return torch.cat([alone, stored, passes.run(rows, second, lengths[rows], left, np.zeros_like(left))])

    return torch.cat([*begun, *begun, *(whole[row, lengths[row] :] for row in rows)]), ask


def _both_ways(trunk: Any) -> Trial:
    """Texts of an encoder, more tokens in all than it has positions."""
    ids, positions = _ids(trunk), positions_of(trunk)
    lengths = [9, 4, ids.shape[1]]
    texts = [one[:length] for one, length in zip(ids, lengths, strict=True)]
    times = 1 + min(len(positions), 2**13) // sum(lengths)

    def ask() -> torch.Tensor:
        found: torch.Tensor = read_packed(
            trunk, torch.cat(texts * times), np.array(lengths * times), positions
        ).last_hidden_state[0]
        return found

    return torch.cat([_whole(trunk, one[None]) for one in texts]).repeat(times, 1), ask


def _ids(trunk: Any) -> torch.Tensor:
    """Three rows, longer than a block of the kernel; none of the first ids, which may be padding."""
    most, width = min(trunk.config.vocab_size, 1000), min(_WIDTH, len(positions_of(trunk)))
    window = getattr(trunk.config, "max_position_embeddings", None) or width
    ids = torch.arange(3 * min(width, window), device=next(trunk.parameters()).device)
    return ids.mul(37).remainder(most).clamp(min=min(5, most - 1)).reshape(3, -1)


def _whole(trunk: Any, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)
