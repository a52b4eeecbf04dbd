"""Units drawn at random: what any other method must beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.compression.methods.shared import Floats, Plain
from pipeline.compression.prompt import Prompt
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from schemas.compress import RandomSpec


def stream_of(seed: int, *texts: str) -> np.random.PCG64:
    """A generator that follows from the seed and the texts alone.

    Its raw numbers are the same in all versions of NumPy, which those of ``np.random.Generator`` need not be.
    """
    parts = [str(seed), *(str(len(text)) for text in texts), *texts]
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return np.random.PCG64(int.from_bytes(digest[:16], "little"))


@dataclass(frozen=True, slots=True)
class Random(Plain):
    """Every order of the units is as likely as any other; ``seed`` gives another one for the same document.

    With ``unit = "sentence"``: random sentences, the papers' "random selection".
    """

    seed: int

    @classmethod
    def build(cls, spec: RandomSpec, models: ModelPool, target: Tokenising) -> Random:
        """The method; it loads nothing."""
        del models
        return cls(target, spec.seed)

    def margins(self, prompt: Prompt) -> Floats:
        """A number between 0 and 1 for every unit."""
        raw = stream_of(self.seed, *(part.text for part in prompt.parts)).random_raw(len(prompt.forced()))
        return np.asarray(raw, dtype=np.uint64) / 2.0**64
