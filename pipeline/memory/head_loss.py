"""Cross entropy behind a frozen vocabulary head, some rows at a time: logits of all would be larger than all else.

The head learns nothing, so the gradient of the states is all there is, and is computed with the loss: the logits are
made once, where a checkpoint makes them twice.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

ROWS = 8192
"""Rows of logits at once: 0.8 GB in half precision for a vocabulary of 49,152, and as much for a teacher's."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """What another says from ``states`` ``[rows, m, d]`` at the same places: of the target distribution it makes up the
    ``share``, and the target the rest (knowledge distillation; Hinton et al., arXiv 1503.02531)."""

    states: torch.Tensor
    share: float


class HeadLoss(torch.autograd.Function):
    """(states ``[n, d]``, head ``[v, d]``, targets ``[n]``, whether n is another each time, a teacher's states
    ``[n, d]`` or None, its share) -> nats of each target, float32 ``[n]``."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, ragged: bool,
        teacher: torch.Tensor | None, share: float,
    ) -> torch.Tensor:  # fmt: skip
        """With the slope of each row's nats by its states, which is all that goes back."""
        nats, slopes = torch.empty(len(states), device=states.device), torch.empty_like(states)
        learned = ctx.needs_input_grad[0]  # what is only measured needs no slopes
        for begin in range(0, len(states), ROWS):
            some = slice(begin, begin + ROWS)
            given: Any = (states[some] @ head.T, targets[some])
            if teacher is not None:
                given += (teacher[some] @ head.T, share)
            found = _apart if teacher is None else _blended
            nats[some], apart = (_compiled(found, ragged) if states.is_cuda else found)(*given)
            if learned:
                slopes[some] = apart @ head
        ctx.save_for_backward(slopes)
        return nats

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """Of the states alone."""
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None].to(slopes.dtype), None, None, None, None, None


def _apart(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of the targets; and probabilities less 1 at the target, the gradient of nats by logits."""
    wide = logits.float()
    total = wide.logsumexp(-1, keepdim=True)
    nats = (total - wide.gather(-1, targets[:, None]))[:, 0]
    apart = (wide - total).exp_().scatter_add_(-1, targets[:, None], torch.full_like(total, -1.0))
    return nats, apart.to(logits.dtype)


def _blended(
    logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a distribution that is the teacher's for a ``share``."""
    wide, says = logits.float(), teacher.float().softmax(-1)
    total = wide.logsumexp(-1, keepdim=True)
    hit = (1 - share) * wide.gather(-1, targets[:, None]) + share * (says * wide).sum(-1, keepdim=True)
    apart = (wide - total).exp_().sub_(says, alpha=share)
    apart.scatter_add_(-1, targets[:, None], torch.full_like(total, share - 1))
    return (total - hit)[:, 0], apart.to(logits.dtype)


@functools.cache
def _compiled(found: Any, ragged: bool) -> Any:
    """The same in one reading of the logits or two, where it would take six; for any number of rows where that is
    another each time."""
    return torch.compile(found, dynamic=ragged)


def nats_of(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, ragged: bool = False,
    teacher: Teacher | None = None,
) -> torch.Tensor:  # fmt: skip
    """Nats of ``targets`` ``[rows, m]`` said from ``states`` ``[rows, m, d]``, float32 ``[rows, m]``; with a
    ``teacher``, cross entropy with both. ``ragged``: in numbers that differ from pass to pass."""
    taught = (teacher.states.flatten(0, 1), teacher.share) if teacher else (None, 0.0)
    given = states.flatten(0, 1), head, targets.flatten(), ragged, *taught
    flat: torch.Tensor = HeadLoss.apply(*given)  # type: ignore[no-untyped-call]
    return flat.view(targets.shape)
