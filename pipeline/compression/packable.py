"""Which models may be read without padding (``packed``): those whose packed passes were seen to say the same."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pipeline.compression.compiling import LAUNCHING
from pipeline.compression.packed import ATTENTION, PackedPasses, attention, read_packed

log = logging.getLogger(__name__)

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
    before, trunk.config._attn_implementation = trunk.config._attn_implementation, ATTENTION
    try:
        apart = _apart(trunk)
    except Exception as error:  # noqa: BLE001  compilers, kernels and models fail in ways of their own
        why = " ".join(str(error).split())[:300]
    else:
        why = f"it is {apart:.2f} off" if not apart < _TOLERANCE else ""
    if why:
        trunk.config._attn_implementation = before
        log.warning("scoring runs with padding, and uncompiled after stored text, at about half the speed: %s", why)
    return not why


def _apart(trunk: Any) -> float:
    causal = not any(getattr(one, "is_causal", True) is False for one in trunk.modules())
    found, expected = _after_stored(trunk) if causal else _both_ways(trunk)
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _after_stored(trunk: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows begun, then gone on with; and their beginnings alone."""
    ids = _ids(trunk)
    early, late, none, rows = np.array([9, 4, 16]), np.array([15, 20, 8]), np.zeros(3, np.int64), np.arange(3)
    first = torch.cat([ids[row, : early[row]] for row in rows])
    second = torch.cat([ids[row, early[row] :] for row in rows])
    whole = _whole(trunk, ids).view(3, 24, -1)
    begun = [whole[row, : early[row]] for row in rows]
    passes = PackedPasses(trunk, 3)
    found = [
        read_packed(trunk, first, early, positions_of(trunk)).last_hidden_state[0],
        passes.run(rows, first, none, early, early),
        passes.run(rows, second, early, late, none),
    ]
    return torch.cat(found), torch.cat([*begun, *begun, *(whole[row, early[row] :] for row in rows)])


def _both_ways(trunk: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of an encoder, more tokens in all than it has positions."""
    ids, lengths, positions = _ids(trunk), [9, 4, 16], positions_of(trunk)
    texts = [one[:length] for one, length in zip(ids, lengths, strict=True)]
    times = 1 + min(len(positions), 2**13) // sum(lengths)
    found = read_packed(trunk, torch.cat(texts * times), np.array(lengths * times), positions).last_hidden_state[0]
    return found, torch.cat([_whole(trunk, one[None]) for one in texts]).repeat(times, 1)


def _ids(trunk: Any) -> torch.Tensor:
    """Three rows; none of the first ids, which may be padding."""
    most = min(trunk.config.vocab_size, 1000)
    ids = torch.arange(3 * 24, device=next(trunk.parameters()).device)
    return ids.mul(37).remainder(most).clamp(min=min(5, most - 1)).reshape(3, 24)


def _whole(trunk: Any, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)
