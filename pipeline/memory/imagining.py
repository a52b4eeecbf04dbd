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
    sizes, chance = [len(ids) for ids in spans], on_device(_chance(spans, many), device)
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
        said.append(_drawn(head(states[-1][:, 0]), chance[:, token]))
        if token == CONTINUATION - 1:
            break
        there = torch.cat([there, torch.ones_like(there[:, :1])], 1)
        read = coder.decoder(
            input_ids=said[-1][:, None], attention_mask=there.long(), position_ids=(ends + token)[:, None],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        states.append(read.last_hidden_state)
    return Imagined(many, torch.stack(said, 1), torch.cat(states, 1))


def _drawn(logits: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Of each row the token at which what is likely adds up to ``chance``."""
    sums = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, (chance * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _chance(spans: Sequence[Ints], many: int) -> np.ndarray:
    """Numbers below 1, ``[spans * many, CONTINUATION]``."""
    seeds = [int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8]) for ids in spans]
    return np.concatenate([np.random.default_rng(seed).random((many, CONTINUATION)) for seed in seeds])
