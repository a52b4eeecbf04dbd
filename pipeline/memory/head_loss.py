"""Cross entropy behind a frozen vocabulary head, some rows at a time: logits of all would be larger than all else.

The head learns nothing, so the gradient of the states is all there is, and is computed with the loss: the logits are
made once, where a checkpoint makes them twice.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

ROWS = 8192
"""Rows of logits at once: 0.8 GB in half precision for a vocabulary of 49,152."""


class HeadLoss(torch.autograd.Function):
    """(states ``[n, d]``, head ``[v, d]``, targets ``[n]``, whether n is another each time) -> nats of each target,
    float32 ``[n]``."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, ragged: bool
    ) -> torch.Tensor:
        """With the slope of each row's nats by its states, which is all that goes back."""
        nats, slopes = torch.empty(len(states), device=states.device), torch.empty_like(states)
        for begin in range(0, len(states), ROWS):
            some = slice(begin, begin + ROWS)
            logits = states[some] @ head.T
            nats[some], apart = (_compiled(ragged) if logits.is_cuda else _apart)(logits, targets[some])
            slopes[some] = apart @ head
        ctx.save_for_backward(slopes)
        return nats

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None, None]:
        """Of the states alone."""
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None].to(slopes.dtype), None, None, None


def _apart(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of the targets; and probabilities less 1 at the target, the gradient of nats by logits."""
    wide = logits.float()
    total = wide.logsumexp(-1, keepdim=True)
    nats = (total - wide.gather(-1, targets[:, None]))[:, 0]
    apart = (wide - total).exp_().scatter_add_(-1, targets[:, None], torch.full_like(total, -1.0))
    return nats, apart.to(logits.dtype)


@functools.cache
def _compiled(ragged: bool) -> Any:
    """The same in one reading of the logits or two, where it would take six; for any number of rows where that is
    another each time."""
    return torch.compile(_apart, dynamic=ragged)


def nats_of(states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, ragged: bool = False) -> torch.Tensor:
    """Nats of ``targets`` ``[rows, m]`` said from ``states`` ``[rows, m, d]``, float32 ``[rows, m]``. ``ragged``: in
    numbers that differ from pass to pass."""
    given = states.flatten(0, 1), head, targets.flatten(), ragged
    flat: torch.Tensor = HeadLoss.apply(*given)  # type: ignore[no-untyped-call]
    return flat.view(targets.shape)
