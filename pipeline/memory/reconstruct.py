"""What a decoder makes of slots when it is told to repeat them."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.generation.generated import no_defaults
from pipeline.memory.autoencoder import TAGS, Autoencoder


@torch.inference_mode()
def reconstructed(coder: Autoencoder, slots: torch.Tensor, size: int) -> torch.Tensor:
    """Slots ``[rows, k, d]`` -> ``size`` token ids a row, greedily; how long a span was is known."""
    tags = torch.full((len(slots),), TAGS.index("AE"), device=slots.device)
    begun = coder.told(slots, tags).to(coder.embed.weight.dtype)
    model: Any = coder.model
    with no_defaults(model):
        found: torch.Tensor = model.generate(
            inputs_embeds=begun, attention_mask=torch.ones(begun.shape[:2], dtype=torch.int64, device=slots.device),
            max_new_tokens=size, min_new_tokens=size, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return found


def prefix_match(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The paper's exact match: the share of each span before the first token that differs, ``[rows]``."""
    return (found == expected).cumprod(1).sum(1) / expected.shape[1]
