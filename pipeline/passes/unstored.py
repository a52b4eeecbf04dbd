"""A cache that stores nothing, for models that are to make no mask where they need none.

Without a cache transformers looks for texts laid end to end in the positions, and waits for the device's answer.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class Unstored(Cache):  # type: ignore[misc]
    """Tells compiled layers that there is no cache."""


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Only the new ones are attended to."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Stored columns."""
        return 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def unstored(config: Any) -> Unstored | None:
    """For a model of this ``config``; None where layers keep something else than keys and values."""
    kinds = set(getattr(config, "layer_types", None) or [])
    layers = [_Layer() for _ in range(config.num_hidden_layers)]
    return Unstored(layers=layers) if kinds <= {"full_attention", "sliding_attention"} else None
