"""Which models may be read without padding (``packed``): those whose packed passes were seen to say the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pipeline.batching import attempted
from pipeline.passes.built import built
from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.fused import MOST, Fused
from pipeline.passes.joined import join
from pipeline.passes.packed import ATTENTION, PackedPasses, attention, read_packed
from pipeline.passes.padded import PaddedPasses
from pipeline.passes.wide import Wide

log = logging.getLogger(__name__)

_WIDTH = 300
"""Tokens of a text that packed passes are tried with."""

_FUSED = torch.bfloat16
"""Models that kernels of our own may read: in float16 the product of activations and a norm's weights may overflow."""

TOLERANCE = 0.05
"""Most that packed hidden states may be off at first sight: half precision takes a hundredth, another model a third."""


def can_pack(trunk: Any) -> bool:
    """Make compiled ``trunk`` ready for packed passes; False where it attends in ways of its own or they fail.

    An encoder is read whole only, a causal model also after what was stored.
    """
    with LAUNCHING:
        if not hasattr(trunk, "contextmill_packs"):
            trunk.contextmill_packs = attends_plainly(trunk) and _agrees(trunk)
        return bool(trunk.contextmill_packs)


def reads_wide(trunk: Any) -> bool:
    """Let packed passes of ``trunk`` be read by kernels of our own (``wide``), with no layer compiled; False where they
    do not say the same, or it is another kind of model."""
    with LAUNCHING:
        if not hasattr(trunk, "contextmill_wide"):
            _widen(trunk)
        return trunk.contextmill_wide is not None


def _widen(trunk: Any) -> None:
    trunk.contextmill_wide = None
    if not attends_plainly(trunk):
        return
    for layer in getattr(trunk, "layers", []):
        join(layer)
    if (made := built(trunk)) is None:
        return

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        trunk.contextmill_wide = None
        expected = _whole(trunk, ids_for(trunk))
        trunk.contextmill_wide = Wide(made)
        return _after_stored(trunk, expected)

    with torch.inference_mode():
        if why := doubt(read):
            trunk.contextmill_wide = None
            log.info("passes take compiled layers: %s", why)


@torch.inference_mode()
def can_step(trunk: Any, kind: type[PackedPasses] | type[PaddedPasses]) -> bool:
    """Whether one token of each row is read right by passes of this ``kind``; for packed ones it ``reads_wide``, or
    ``can_pack``."""
    packed = kind is PackedPasses
    with LAUNCHING:
        why = doubt(lambda: _token_by_token(trunk, kind, _WIDTH if packed else _WIDTH // 8, 16))
        if packed and not why:
            _fuse(trunk)
    if why:
        else_by = "with padding" if packed else "by transformers' generate"
        log.warning("the model writes %s, at a fraction of the speed: %s", else_by, why)
    return not why


def _fuse(trunk: Any) -> None:
    """Let steps of few tokens be read by kernels of our own, where these say the same."""
    made = built(trunk) if next(trunk.parameters()).dtype == _FUSED else None
    trunk.contextmill_fused = Fused(made) if made else None
    if trunk.contextmill_fused and (why := doubt(lambda: _token_by_token(trunk, PackedPasses, _WIDTH, MOST // 3))):
        trunk.contextmill_fused = None
        log.info("steps of few tokens are read as longer ones are, and take a little longer: %s", why)


def positions_of(trunk: Any) -> range:
    """The positions of a text's tokens: RoBERTa begins its behind the padding's."""
    for name, one in trunk.named_modules():
        if name.endswith("position_embeddings") and isinstance(one, torch.nn.Embedding):
            return range(0 if one.padding_idx is None else one.padding_idx + 1, one.num_embeddings)
    return range(2**31 - 1)


def attends_plainly(trunk: Any) -> bool:
    """Whether every layer attends to all tokens (before), by transformers' attention functions."""
    config = trunk.config
    kinds = getattr(config, "layer_types", None) or []
    sliding = getattr(config, "sliding_window", None) if not kinds else None
    ours = getattr(trunk, "_supports_attention_backend", False) and config._attn_implementation in ("sdpa", ATTENTION)
    return ours and not sliding and set(kinds) <= {"full_attention"}


@torch.inference_mode()
def _agrees(trunk: Any) -> bool:
    """Whether packed passes give the hidden states of a plain one. Until then the attention is not trusted."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before = trunk.config._attn_implementation
    causal = not any(getattr(one, "is_causal", True) is False for one in trunk.modules())

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        trunk.config._attn_implementation = before
        ids = ids_for(trunk)
        expected = _whole(trunk, ids) if causal else torch.cat([_whole(trunk, one[None]) for one in _beginnings(ids)])
        trunk.config._attn_implementation = ATTENTION  # from here on: what is expected comes from transformers' own
        return (_after_stored if causal else _both_ways)(trunk, expected)

    if why := doubt(read):
        trunk.config._attn_implementation = before
        log.warning("the model runs with padding, and uncompiled after stored text, at about half the speed: %s", why)
    return not why


def doubt(read: Callable[[], tuple[torch.Tensor, torch.Tensor]], most: float = TOLERANCE) -> str:
    """Why hidden states or logits that were found cannot pass for the expected ones, which they may be ``most`` off;
    empty where they can. Where memory is short ``read`` is called again, once what is kept for speed is let go: what
    it finds out holds for as long as the model is loaded."""
    try:
        ((found, expected),) = attempted(read, last=True)
        apart = float((found.float() - expected.float()).norm() / expected.float().norm())
    except Exception as error:  # noqa: BLE001  compilers, kernels and models fail in ways of their own
        return " ".join(str(error).split())[:300] or type(error).__name__
    return "" if apart < most else f"it is {apart:.2f} off"


def _after_stored(trunk: Any, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Beginnings of rows alone; stored; then two rows, in another order, gone on with in a store that grows. And what
    of the ``expected`` states of whole rows they are to say."""
    ids = ids_for(trunk)
    width = ids.shape[1]
    lengths, rows = np.array([width // 3, 4, 2 * width // 3]), np.array([2, 0])
    whole = expected.view(3, width, -1)
    first = torch.cat([ids[row, :length] for row, length in enumerate(lengths)])
    second = torch.cat([ids[row, lengths[row] :] for row in rows])
    passes, left = PackedPasses(trunk, 3), width - lengths[rows]
    found = [
        read_packed(trunk, first, lengths, positions_of(trunk)).last_hidden_state[0],
        passes.run(np.arange(3), first, np.zeros_like(lengths), lengths),
        passes.run(rows, second, lengths[rows], left),
    ]
    begun = [whole[row, :length] for row, length in enumerate(lengths)]
    return torch.cat(found), torch.cat([*begun, *begun, *(whole[row, lengths[row] :] for row in rows)])


def _token_by_token(trunk: Any, kind: Any, width: int, some: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``some`` tokens of three rows after what was stored of them, in a store laid out for them; then one of two, and
    three times as many of one: of more tokens kernels are others."""
    ids, rows = ids_for(trunk, width), np.arange(3)
    width = ids.shape[1]
    some = max(2, min(some, width // 8))
    stored = np.array([width - some - 1, 4, width // 2])
    whole = _whole(trunk, ids).view(3, width, -1)
    many = min(3 * some, width // 2 - some)
    ends = np.cumsum(needs := stored + some + np.array([1, 1, many]))
    passes = kind(trunk, 3, 2**31 - 1)
    passes.reserve(int(ends[-1]), width)
    passes.place(rows, ends - needs)
    begun = torch.cat([ids[row, : stored[row]] for row in rows])
    passes.run(rows, begun, np.zeros_like(stored), stored)
    found, expected = [], []
    for which, skip, new in (([2, 0, 1], 0, some), ([2, 0], some, 1), ([2], some, many)):
        slots, begins = (torch.tensor(one, device=ids.device) for one in (which, (stored[which] + skip).tolist()))
        columns = begins[:, None] + torch.arange(new, device=ids.device)
        found.append(passes.read_on(slots, ids[slots[:, None], columns], begins, width))
        expected.append(whole[slots[:, None], columns].flatten(0, 1))
    return torch.cat(found), torch.cat(expected)


def _beginnings(ids: torch.Tensor) -> list[torch.Tensor]:
    return [one[:length] for one, length in zip(ids, (9, 4, ids.shape[1]), strict=True)]


def _both_ways(trunk: Any, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of an encoder, more tokens in all than it has positions."""
    texts, positions = _beginnings(ids_for(trunk)), positions_of(trunk)
    times = 1 + min(len(positions), 2**13) // len(expected)
    lengths = np.array([len(one) for one in texts] * times)
    found = read_packed(trunk, torch.cat(texts * times), lengths, positions).last_hidden_state[0]
    return found, expected.repeat(times, 1)


def ids_for(trunk: Any, width: int = _WIDTH) -> torch.Tensor:
    """Three rows, longer than a block of the kernel; none of the first ids, which may be padding."""
    most, window = min(trunk.config.vocab_size, 1000), getattr(trunk.config, "max_position_embeddings", None) or width
    ids = torch.arange(3 * min(width, window, len(positions_of(trunk))), device=next(trunk.parameters()).device)
    return ids.mul(37).remainder(most).clamp(min=min(5, most - 1)).reshape(3, -1)


def _whole(trunk: Any, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)
