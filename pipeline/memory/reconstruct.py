"""What a decoder makes of slots when it is told to repeat them."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.generation.generated import no_defaults
from pipeline.memory.autoencoder import TAGS, Autoencoder


@torch.inference_mode()
def reconstructed(coder: Autoencoder, ids: torch.Tensor, slots: int) -> torch.Tensor:
    """Spans ``[rows, n]`` through so many slots each and back, greedily; how long a span was is known."""
    encoded = coder.encode(ids, slots)
    tag = coder.tags[TAGS.index("AE")].expand(len(ids), 1, -1)
    begun = torch.cat([encoded, tag], 1).to(coder.embed.weight.dtype)
    size = ids.shape[1]
    model: Any = coder.model
    with no_defaults(model):
        found: torch.Tensor = model.generate(
            inputs_embeds=begun, attention_mask=torch.ones(begun.shape[:2], dtype=torch.int64, device=ids.device),
            max_new_tokens=size, min_new_tokens=size, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return found


def prefix_match(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The paper's exact match: the share of each span before the first token that differs, ``[rows]``."""
    return (found == expected).cumprod(1).sum(1) / expected.shape[1]
