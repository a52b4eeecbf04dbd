"""What tells trainings of an encoder apart: what their steps learn from, and what is measured before and after.

A session knows no more of either than this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.training import Part
from pipeline.models.encoders import Answers, Figures
from pipeline.stages import Outcome, Refusal

Numbers = tuple[float, ...]
"""What was measured of one that is held out; NaN where it was not."""


def known(value: float) -> float | None:
    """As a row has it: None where it was not measured."""
    return None if math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class Signs:
    """Of life while something is measured: ``alive`` before each pass, which may raise; ``passed`` after it, with its
    tokens."""

    alive: Callable[[], None] = lambda: None
    passed: Callable[[int], None] = lambda tokens: None


class Measurer(Protocol):
    """Of an encoder, on what is held out."""

    @property
    def work(self) -> tuple[int, int]:
        """Tokens that are read before the training and after it."""
        ...

    def before(self, signs: Signs) -> list[Numbers]:
        """Of each that is held out, in their order."""
        ...

    def after(self, signs: Signs) -> list[Numbers]:
        """The same once more."""
        ...

    def sample(self) -> str:
        """One of them, and what the model makes of its slots, in a line."""
        ...


class Plan(Protocol):
    """Of one training, over documents of which some are ``refused``, by their ``seq``."""

    @property
    def refused(self) -> dict[int, Refusal]:
        """Documents that nothing can be learned from, and why."""
        ...

    @property
    def corpus(self) -> list[str]:
        """Digests of the others, in an order that their place in the job does not change."""
        ...

    def slots(self, coder: Autoencoder) -> torch.Tensor:
        """Some, of what is learned first, ``[n, d]``."""
        ...

    def hasten(self, coder: Autoencoder) -> None:
        """Compile what reads, for the shapes that will come."""
        ...

    def parts(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Part]:
        """What this step learns from, or one of several processes' share of that."""
        ...

    def tokens(self, step: int) -> int:
        """How many tokens that are, about: enough for a meter."""
        ...

    def measurer(self, coder: Autoencoder) -> Measurer:
        """Over what is held out."""
        ...

    def figures(self, before: Sequence[Numbers], after: Sequence[Numbers]) -> tuple[Figures, Answers | None]:
        """What the encoder is worth: how spans come back, and how it answers, if that was asked."""
        ...

    def outcomes(self, before: Sequence[Numbers], after: Sequence[Numbers], seconds: float) -> dict[int, Outcome]:
        """Of each document that was not refused, by its ``seq``; they share the ``seconds``."""
        ...

    @property
    def less(self) -> str:
        """What takes less memory, and how much of it is taken now."""
        ...
