"""Truncation: what every pipeline does that does not compress. The cut runs through the text as one run of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pipeline.compression.methods.shared import Floats, Plain
from pipeline.compression.prompt import Prompt
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from schemas.compress import TruncationSpec


@dataclass(frozen=True, slots=True)
class Truncation(Plain):
    """Cuts off the ``cut``: the tail, the head, or the middle (as many tokens stay at either end; LongBench's way).

    What must stay does and is not counted in. A unit that does not fit ends the text: no gaps are filled.
    """

    STRICT: ClassVar[bool] = True
    cut: Literal["head", "tail", "middle"]

    @classmethod
    def build(cls, spec: TruncationSpec, models: ModelPool, target: Tokenising) -> Truncation:
        """The method; it loads nothing."""
        del models
        return cls(target, spec.cut)

    def margins(self, prompt: Prompt) -> Floats:
        """How far a unit is from what goes first, in tokens."""
        costs = np.where(prompt.forced(), 0, prompt.costs()).astype(np.float64)
        ends = np.cumsum(costs)
        middles = ends - costs / 2
        total = float(ends[-1])
        return {"head": middles, "tail": total - middles, "middle": np.abs(middles - total / 2)}[self.cut]
