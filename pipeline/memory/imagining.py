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


@dataclass(frozen=True, slots=True)
class Imagined:
    """``many`` continuations of each span, end to end, of m tokens each: these, ``ids`` ``[spans * many, m]``, and the
    ``states`` ``[spans * many, m, d]`` from which the target says each."""

    many: int
    ids: torch.Tensor
    states: torch.Tensor

    def of(self, spans: torch.Tensor) -> Imagined:
        """Of these spans alone, by their numbers."""
        rows = (spans[:, None] * self.many + torch.arange(self.many, device=spans.device)).flatten()
        return Imagined(self.many, self.ids[rows], self.states[rows])


@torch.no_grad()
def imagined(
    coder: Autoencoder, spans: Sequence[Ints], many: int, alive: Callable[[], None] = lambda: None
) -> Imagined:
    """Drawn at a temperature of 1, by the span alone: the same in any company, but for rounding. ``alive`` is called
    for each token, and may raise. Raises ``ModelError`` for a model that keeps nothing of what it read that could be
    copied."""
    model: Any = coder.model
    device, head = coder.tags.device, model.get_output_embeddings()
    sizes, hashes = [len(ids) for ids in spans], [hashlib.sha256(ids.tobytes()).hexdigest() for ids in spans]
    numbers = uniform([document_seed(seed, one) for one in hashes for seed in range(many)], CONTINUATION, device)
    ids = np.zeros((len(spans), max(sizes)), np.int64)
    for row, span in enumerate(spans):
        ids[row, : len(span)] = span
    ends = on_device(np.array(sizes, np.int64), device)
    there = torch.arange(max(sizes), device=device) < ends[:, None]
    read = coder.decoder(input_ids=on_device(ids, device), attention_mask=there.long(), use_cache=True)
    last = read.last_hidden_state.gather(1, (ends - 1)[:, None, None].expand(-1, 1, read.last_hidden_state.shape[2]))
    cache, said, states = read.past_key_values, list[torch.Tensor](), [last.repeat_interleave(many, 0)]
    if not hasattr(cache, "batch_repeat_interleave"):
        raise ModelError(f"continuations: {type(model).__name__} has no key-value cache to go on from: leave them out")
    cache.batch_repeat_interleave(many)
    there, ends = there.repeat_interleave(many, 0), ends.repeat_interleave(many)
    for token in range(CONTINUATION):
        alive()
        said.append(draw(head(states[-1][:, 0]).float(), numbers[:, token]))
        if token == CONTINUATION - 1:
            break
        there = torch.cat([there, torch.ones_like(there[:, :1])], 1)
        read = coder.decoder(
            input_ids=said[-1][:, None], attention_mask=there.long(), position_ids=(ends + token)[:, None],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        states.append(read.last_hidden_state)
    return Imagined(many, torch.stack(said, 1), torch.cat(states, 1))
