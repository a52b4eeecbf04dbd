"""What targets cost behind logits, in nats: by a kernel of Triton's that reads them once.

The logits of a few thousand rows are more than all else that a scorer makes of them, and reading them twice takes as
long as the product they come from.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipeline.passes.launches import Launches

_WARPS = 4

_LANES = _WARPS * 32 * 8
"""Entries side by side: of half precision 16 bytes for each thread, the most that one instruction loads."""

_DEEP = 8
"""So many times that is loaded before any of it is needed. What lies one below the other is one thread's, which finds
the largest of it without a word to others: a program waits for all of its threads at the row's end alone."""

_LOG2E = tl.constexpr(1.4426950408889634)
"""Exponentials are of two here: the GPU's own."""

_LOWEST = tl.constexpr(-1e38)
"""Stands in for no logit at all. Not minus infinity: less itself that is no number."""


def surprisal(logits: torch.Tensor, targets: torch.Tensor, cap: float | None = None) -> torch.Tensor:
    """-log softmax(``logits``)[target] ``[rows]``, float32, of ``logits`` ``[rows, vocabulary]`` of any float type and
    ``targets`` ``[rows]`` within the vocabulary. ``cap``: logits are ``cap * tanh(logits / cap)`` (Gemma 2)."""
    rows, vocabulary = logits.shape
    nats = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        _surprisal(
            (rows, 1), (logits.contiguous(), targets.contiguous(), nats), (vocabulary, cap, _DEEP, _LANES), warps=_WARPS
        )
    return nats


# Where a piece of the targets begins is not specialised on: it would be compiled anew in the midst of work.
@Launches
@triton.jit(do_not_specialize_on_alignment=["targets"])  # type: ignore[untyped-decorator, unused-ignore]
def _surprisal(  # type: ignore[no-untyped-def]
    logits, targets, nats, vocabulary, CAP: tl.constexpr, DEEP: tl.constexpr, LANES: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)  # what lies before the last rows of a large vocabulary is over 2^31 entries
    mine = logits + row * vocabulary
    place = tl.arange(0, DEEP)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    # Of each lane: the largest logit so far, and the sum of exponentials less that (arXiv 1805.02867).
    most = tl.full([LANES], _LOWEST, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    for begin in range(0, vocabulary, DEEP * LANES):
        real = begin + place < vocabulary
        some = tl.load(mine + begin + place, mask=real, other=float("-inf")).to(tl.float32)
        if CAP is not None:
            some = tl.where(real, _capped(some, CAP), float("-inf"))
        higher = tl.maximum(most, tl.max(some, 0))
        added = tl.sum(tl.exp2((some - higher[None, :]) * _LOG2E), 0)
        total = total * tl.exp2((most - higher) * _LOG2E) + added
        most = higher
    highest = tl.max(most, 0)
    whole = tl.sum(total * tl.exp2((most - highest) * _LOG2E), 0)
    said = tl.load(mine + tl.load(targets + row)).to(tl.float32)
    if CAP is not None:
        said = _capped(said, CAP)
    tl.store(nats + row, tl.log(whole) + (highest - said))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _capped(logits, CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    return CAP - 2 * CAP / (1 + tl.exp2(logits * (2 * _LOG2E / CAP)))
