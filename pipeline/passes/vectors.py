"""Vectors that a model reads in place of tokens, as if they were embeddings: transformers' ``inputs_embeds``.

They are put where the model's own table has put the tokens' embeddings, after what the table scales (Gemma's) and
before what the trunk does to its input (Granite's factor, learned positions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Vectors:
    """``states`` ``[n, d]`` in place of the tokens ``at`` ``[n]`` of a pass, by their places in it."""

    at: torch.Tensor
    states: torch.Tensor


def input_of(trunk: Any, ids: torch.Tensor, vectors: Vectors | None) -> dict[str, torch.Tensor]:
    """What ``trunk`` is told to read: ``ids`` of any shape, or their embeddings with ``vectors`` among them, whose
    places count through all ids."""
    if vectors is None:
        return {"input_ids": ids}
    words = trunk.get_input_embeddings()(ids)
    words.view(-1, words.shape[-1])[vectors.at] = vectors.states.to(words)
    return {"inputs_embeds": words}
