"""What slots are worth where a text goes on: nats of what comes next behind its context, its slots, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.fit import AS_MADE, Fit
from pipeline.memory.head_loss import nats_of
from pipeline.memory.measure import encoded
from pipeline.memory.spans import Parts


class Continuation(NamedTuple):
    """Mean nats of the tokens after a context: behind nothing, all of it, its tail of as many tokens as slots, its
    slots."""

    none: float
    full: float
    tail: float
    slots: float


def continuation(
    coder: Autoencoder, contexts: torch.Tensor, after: torch.Tensor, parts: Parts, fit: Fit = AS_MADE,
    alive: Callable[[], None] = lambda: None,
) -> list[Continuation]:  # fmt: skip
    """Of contexts ``[rows, n]``, cut into ``parts``, and what follows them ``[rows, m]``, m >= 2. ``fit``,
    ``alive``: as of ``refining``.

    The first token of what follows is given in all four: behind nothing, there is nothing to say it from.
    """
    slots = sum(many for _, many in parts)
    tags = torch.full((len(after),), TAGS.index("LM"), device=after.device)
    states = {
        "none": coder.text_states(after)[:, :-1],
        "full": _behind(coder, contexts, after),
        "tail": _behind(coder, contexts[:, contexts.shape[1] - slots :], after),
        "slots": coder.states(encoded(coder, contexts, parts, fit, alive), tags, after)[:, 1:],
    }
    head = coder.model.get_output_embeddings().weight
    nats = [nats_of(states[one].to(head.dtype), head, after[:, 1:]).mean(1).tolist() for one in Continuation._fields]
    return [Continuation(*row) for row in zip(*nats, strict=True)]


def _behind(coder: Autoencoder, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return coder.text_states(torch.cat([before, after], 1))[:, before.shape[1] : -1]
