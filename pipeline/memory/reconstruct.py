"""What a decoder makes of slots when it is told to repeat them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from pipeline.generation.generated import no_defaults
from pipeline.memory.autoencoder import TAGS, Autoencoder


class _Alive(StoppingCriteria):  # type: ignore[misc]
    """Stops at nothing, but calls something after each token, which may raise."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._alive()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def reconstructed(
    coder: Autoencoder, slots: torch.Tensor, size: int, mask: torch.Tensor | None = None,
    alive: Callable[[], None] = lambda: None,
) -> torch.Tensor:  # fmt: skip
    """Slots ``[rows, k, d]`` -> ``size`` token ids a row, greedily; how long a span was is known. ``mask`` ``[rows,
    k]``: which of them there are, where rows have different numbers of them; all. ``alive`` is called for each token
    that is written, and may raise."""
    tags = torch.full((len(slots),), TAGS.index("AE"), device=slots.device)
    begun = coder.told(slots, tags).to(coder.embed.weight.dtype)
    there = torch.ones(begun.shape[:2], dtype=torch.int64, device=slots.device)
    if mask is not None:
        there[:, 1:-1] = mask  # between what stands first and the slots: places are counted without the others
    model: Any = coder.model
    with no_defaults(model):
        found: torch.Tensor = model.generate(
            inputs_embeds=begun, attention_mask=there,
            max_new_tokens=size, min_new_tokens=size, do_sample=False, pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([_Alive(alive)]),
        )  # fmt: skip
    return found


def padded(slots: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots ``[k, d]`` of several spans -> ``[rows, k, d]``, filled up on the left as what is written stands on the
    right; and which of them there are, ``[rows, k]``."""
    most = max(map(len, slots))
    rows = torch.stack([torch.nn.functional.pad(one, (0, 0, most - len(one), 0)) for one in slots])
    places = torch.arange(most, device=rows.device)
    return rows, torch.stack([(places >= most - len(one)).long() for one in slots])


def prefix_match(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The paper's exact match: the share of each span before the first token that differs, ``[rows]``."""
    return (found == expected).cumprod(1).sum(1) / expected.shape[1]
