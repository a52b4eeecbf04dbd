"""What targets cost behind a vocabulary head, in nats: the head's product, and what turns its logits into them."""

from __future__ import annotations

import logging
from typing import Any

import torch

from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.packable import doubt

log = logging.getLogger(__name__)

_TRIED = 48
"""Rows that a kernel is tried with."""

_CLOSE = 1e-4
"""Most that it may be off, as a share: it is given the very logits that torch is, and adds in float32, too."""


def nats(head: Any, hidden: torch.Tensor, targets: torch.Tensor, cap: float | None = None) -> torch.Tensor:
    """-log p(target) of ``targets`` ``[n]`` behind ``hidden`` ``[n, d]``: ``[n]``, at least in float32.

    ``cap``: logits are ``cap * tanh(logits / cap)``. By a kernel of our own where the head ``reads_logits_once``.
    """
    logits = head(hidden)
    return _read_once(logits, targets, cap) if getattr(head, "contextmill_nats", False) else plain(logits, targets, cap)


def plain(logits: torch.Tensor, targets: torch.Tensor, cap: float | None = None) -> torch.Tensor:
    """As ``nats``, of ``logits`` ``[n, vocabulary]``, in torch's own words: they are read and written several times."""
    if cap is not None:
        logits = torch.tanh(logits.float() / cap) * cap
    chances = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return -chances.gather(-1, targets[:, None])[:, 0]


def reads_logits_once(head: Any, cap: float | None = None) -> bool:
    """Let logits of ``head`` be read by a kernel of our own (``surprisal``); False where it does not say the same, as
    where there is no Triton. Tried once a head."""
    with LAUNCHING:
        if not hasattr(head, "contextmill_nats"):
            head.contextmill_nats = _agrees(head, cap)
        return bool(head.contextmill_nats)


@torch.inference_mode()
def _agrees(head: Any, cap: float | None) -> bool:
    def read() -> tuple[torch.Tensor, torch.Tensor]:
        size = len(head.weight)
        ids = torch.arange(0, size, max(1, size // _TRIED), device=head.weight.device)
        logits, others = head(head.weight[ids]), ids.roll(1)  # a token itself might cost nothing, of which no share is
        return _read_once(logits, others, cap), plain(logits, others, cap)

    if why := doubt(read, _CLOSE):
        log.warning("torch turns logits into nats, in several readings, and takes a little longer: %s", why)
    return not why


def _read_once(logits: torch.Tensor, targets: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Without ``LAUNCHING``, but for the first time: Triton compiles and loads a kernel as it is first launched, where
    another thread may find half of it. Later ones change nothing: types, vocabulary and cap are the head's, and nothing
    else makes Triton compile anew."""
    from pipeline.passes import surprisal  # where there is no GPU there is no Triton

    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        found: torch.Tensor = surprisal.surprisal(logits, targets, cap)
    return found
