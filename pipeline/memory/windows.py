"""What a step of pretraining learns from: windows of the corpus, of which some are to be repeated from their slots and
the others gone on with.

Everything random follows from the seed and the number of the step, so that whoever goes on from a checkpoint ends where
an unbroken run does.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.head_loss import nats_of
from pipeline.memory.lessons import lesson
from pipeline.memory.spans import Ints
from pipeline.passes.transfers import on_device
from schemas.memory import Lesson, PretrainSpec


@dataclass(frozen=True, slots=True)
class Batch:
    """``contexts`` ``[rows, n]`` into ``slots`` each, ``targets`` ``[rows, n]`` to be said behind them, told by the
    ``tags`` ``[rows]``."""

    contexts: torch.Tensor
    targets: torch.Tensor
    tags: torch.Tensor
    slots: int
    weight: float = 1.0

    def share(self, rank: int, world: int) -> Batch:
        """What one of several processes learns of it, as ``weight`` says."""
        one = slice(rank, None, world)
        rows = len(self.contexts[one])
        return Batch(
            self.contexts[one], self.targets[one], self.tags[one], self.slots, self.weight * rows / len(self.contexts)
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """As of ``replaying.Recurring``."""
        return self.contexts, self.targets, self.tags

    @property
    def shape(self) -> Hashable:
        """The same."""
        return *(one.shape for one in self.tensors), self.slots, self.weight

    def copy(self) -> Batch:
        """The same."""
        contexts, targets, tags = (one.clone() for one in self.tensors)
        return Batch(contexts, targets, tags, self.slots, self.weight)

    def loss(self, coder: Autoencoder) -> torch.Tensor:
        """Mean nats of a target's tokens, times its weight."""
        slots = coder.encode(self.contexts, self.slots)
        states = coder.states(slots, self.tags, self.targets)
        head = coder.model.get_output_embeddings().weight
        return nats_of(states.to(head.dtype), head, self.targets).mean() * self.weight


def rows_of(spec: PretrainSpec, one: Lesson) -> int:
    """Spans that a step of this lesson learns from."""
    return max(1, spec.tokens_per_step // one.tokens)


def windows_of(spec: PretrainSpec, one: Lesson) -> dict[int, int]:
    """Of how many tokens in a row a step of this lesson takes how many windows: a span to be repeated is one, a span to
    be gone on with has as many tokens after it."""
    rows = rows_of(spec, one)
    repeated = round(rows * spec.autoencoding)
    return {size: many for size, many in ((one.tokens, repeated), (2 * one.tokens, rows - repeated)) if many}


def batch_of(corpus: Corpus, spec: PretrainSpec, step: int, device: torch.device) -> Batch:
    """What this step learns from."""
    random, one = np.random.default_rng([spec.seed, step]), lesson(spec, step)
    drawn = [corpus.windows(random, many, size) for size, many in windows_of(spec, one).items()]
    contexts, targets = (np.concatenate(each) for each in zip(*map(partial(_halves, one.tokens), drawn), strict=True))
    repeated = np.repeat([len(found[0]) == one.tokens for found in drawn], [len(found) for found in drawn])
    tags = np.where(repeated, TAGS.index("AE"), TAGS.index("LM"))
    order = random.permutation(len(tags))  # so that shares of a step have some of both
    arrays = contexts[order], targets[order], tags[order]
    asked, said, told = (on_device(each, device) for each in arrays)
    return Batch(asked, said, told, one.slots)


def _halves(tokens: int, windows: Ints) -> tuple[Ints, Ints]:
    """The spans of ``windows``, and what is to be said behind their slots."""
    return windows[:, :tokens], windows[:, -tokens:]
