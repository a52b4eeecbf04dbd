"""How the target itself goes on with a span: continuations that it draws, and all that it says at each of their tokens.

A text that goes on after a span is not known when that is encoded. What the target expects is, and slots that make it
expect the same are worth as much as the text, whatever comes (knowledge distillation on outputs of the teacher's own;
Kim and Rush, arXiv 1606.07947).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.generation.sampling import document_seed, draw, uniform
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.spans import Ints
from pipeline.models.ref import ModelError
from pipeline.passes.transfers import on_device
from schemas.memory import CONTINUATION

_AT_ONCE = 256
"""Continuations of which a token is drawn."""


@dataclass(frozen=True, slots=True)
class Imagined:
    """``many`` continuations of each span, end to end, of m tokens each: these, ``ids`` ``[spans * many, m]``, and the
    ``states`` ``[spans * many, m, d]`` from which the target says each."""

    many: int
    ids: torch.Tensor
    states: torch.Tensor


@torch.no_grad()
def imagined(
    coder: Autoencoder, spans: Sequence[Ints], many: int, alive: Callable[[], None] = lambda: None
) -> Imagined:
    """Drawn at a temperature of 1, by the span alone: the same in any company, but for rounding. ``alive`` is called
    for each token, and may raise. Raises ``ModelError`` for a model that keeps nothing of what it read that could be
    copied."""
    model: Any = coder.model
    device, head = coder.tags.device, model.get_output_embeddings()
    hashes = [hashlib.sha256(ids.tobytes()).hexdigest() for ids in spans]
    spans = [np.concatenate([coder.start.cpu().numpy(), ids]) for ids in spans]
    sizes = [len(ids) for ids in spans]
    numbers = uniform([document_seed(seed, one) for one in hashes for seed in range(many)], CONTINUATION, device)
    ids = np.zeros((len(spans), max(sizes)), np.int64)  # filled up on the left: windows count what is kept, not places
    for row, span in enumerate(spans):
        ids[row, -len(span) :] = span
    there = torch.arange(max(sizes), device=device) >= max(sizes) - on_device(np.array(sizes), device)[:, None]
    places = (there.cumsum(1) - 1).clamp(min=0)
    read = coder.decoder(
        input_ids=on_device(ids, device), attention_mask=there.long(), position_ids=places, use_cache=True
    )
    said, states = list[torch.Tensor](), [read.last_hidden_state[:, -1:].repeat_interleave(many, 0)]
    cache, there, ends = _copied(read.past_key_values, many, model), there.repeat_interleave(many, 0), places[:, -1]
    ends = ends.repeat_interleave(many)
    for token in range(CONTINUATION):
        alive()
        said.append(_drawn(head, states[-1][:, 0], numbers[:, token]))
        if token == CONTINUATION - 1:
            break
        there = torch.cat([there, torch.ones_like(there[:, :1])], 1)
        read = coder.decoder(
            input_ids=said[-1][:, None], attention_mask=there.long(), position_ids=(ends + token + 1)[:, None],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        states.append(read.last_hidden_state)
    return Imagined(many, torch.stack(said, 1), torch.cat(states, 1))


def _drawn(head: Any, states: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Some at once: a vocabulary in double precision is large."""
    pairs = zip(torch.split(states, _AT_ONCE), torch.split(numbers, _AT_ONCE), strict=True)
    return torch.cat([draw(head(some).float(), chance) for some, chance in pairs])


def _copied(cache: Any, many: int, model: Any) -> Any:
    try:
        cache.batch_repeat_interleave(many)
    except (AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"continuations: {type(model).__name__} has no key-value cache to go on from: leave them out"
        ) from error
    return cache
