"""A way to look into the decisions of one document: how close they are, and what would follow from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Probe(Protocol):
    """What it returns is decided by; returning what it was given changes nothing."""

    def scores(self, scores: Sequence[float]) -> Sequence[float]:
        """The scores of a document's contexts or sentences, before they are ranked."""
        ...

    def values(self, values: torch.Tensor, valid: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
        """What tokens are valued at (``[rows, width]``) where ``valid``, before a threshold is taken by ``ratios``."""
        ...
