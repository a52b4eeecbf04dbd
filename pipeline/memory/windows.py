"""What a step of pretraining learns from: windows of the corpus, of which some are to be repeated from their slots and
the others gone on with.

Everything random follows from the seed and the number of the step, so that whoever goes on from a checkpoint ends where
an unbroken run does.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.head_loss import Teacher, nats_of
from pipeline.memory.lessons import lesson
from pipeline.memory.spans import Ints
from pipeline.passes.compiling import uncompiled
from pipeline.passes.transfers import on_device
from schemas.memory import Lesson, PretrainSpec

_STARTS = 0.25
"""Of the windows, those that begin a text, as the first span of every document does that is encoded. Drawn from
anywhere, hardly any would; an encoder that was fine-tuned on questions beside such brought beginnings back worse than
the rest."""

_MANY = 16
"""Rows of which the nearest number is near enough: steps of one shape are recorded once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``contexts`` ``[rows, n]`` into ``slots`` each, ``targets`` ``[rows, n]`` to be said behind them: of the first
    ``repeated`` rows the contexts themselves, of the others what goes on. What the model says behind the text of these
    makes up the share ``distilled`` of what is to be said."""

    contexts: torch.Tensor
    targets: torch.Tensor
    repeated: int
    slots: int
    distilled: float = 0.0
    weight: float = 1.0

    @property
    def tags(self) -> torch.Tensor:
        """What the decoder is told, ``[rows]``."""
        found = torch.full((len(self.contexts),), TAGS.index("LM"), device=self.contexts.device)
        found[: self.repeated] = TAGS.index("AE")
        return found

    def share(self, rank: int, world: int) -> Batch:
        """What one of several processes learns of it, as ``weight`` says: some of both."""
        one = slice(rank, None, world)
        rows, repeated = len(self.contexts[one]), len(range(rank, self.repeated, world))
        weight = self.weight * rows / len(self.contexts)
        return Batch(self.contexts[one], self.targets[one], repeated, self.slots, self.distilled, weight)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """As of ``replaying.Recurring``."""
        return self.contexts, self.targets

    @property
    def shape(self) -> Hashable:
        """The same."""
        return *(one.shape for one in self.tensors), self.repeated, self.slots, self.distilled, self.weight

    def copy(self) -> Batch:
        """The same."""
        return replace(self, contexts=self.contexts.clone(), targets=self.targets.clone())

    def loss(self, coder: Autoencoder) -> torch.Tensor:
        """Mean nats of a target's tokens, times its weight."""
        head, on = coder.model.get_output_embeddings().weight, self.repeated
        slots = coder.encode(self.contexts, self.slots)
        states = coder.states(slots, self.tags, self.targets).to(head.dtype)
        if not self.distilled or on == len(states):
            return nats_of(states, head, self.targets).mean() * self.weight
        teacher = Teacher(self._behind_text(coder).to(head.dtype), self.distilled)
        found = [nats_of(states[on:], head, self.targets[on:], teacher=teacher)]
        if on:
            found.append(nats_of(states[:on], head, self.targets[:on]))
        return torch.cat(found).mean() * self.weight

    @torch.no_grad()
    def _behind_text(self, coder: Autoencoder) -> torch.Tensor:
        """States ``[rows, n, d]`` from which the frozen model says what goes on, behind the text itself."""
        text = torch.cat([self.contexts[self.repeated :], self.targets[self.repeated :, :-1]], 1)
        with uncompiled(text.device):  # a fifteenth of the work, for which layers would be compiled once more a lesson
            return coder.text_states(text)[:, self.contexts.shape[1] - 1 :]


def rows_of(spec: PretrainSpec, one: Lesson) -> int:
    """Spans that a step of this lesson learns from."""
    return max(1, spec.tokens_per_step // one.tokens)


def windows_of(spec: PretrainSpec, one: Lesson) -> list[int]:
    """Of how many tokens in a row the windows are that steps of this lesson take: a span to be repeated is one, a span
    to be gone on with has as many tokens after it."""
    repeated = [one.tokens] if spec.autoencoding > 0 else []
    return [*repeated, 2 * one.tokens] if spec.autoencoding < 1 else repeated


def repeated_of(rows: int, share: float, random: np.random.Generator) -> int:
    """How many of the rows of a step are repeated: the share's, to the nearest. Of a few rows that may be far off, or
    none, or all: there it is drawn, now one less and now one more, so that over the steps it is the share's."""
    return round(rows * share) if rows >= _MANY else int(rows * share + random.random())


def batch_of(corpus: Corpus, spec: PretrainSpec, step: int, device: torch.device) -> Batch:
    """What this step learns from."""
    random, one = np.random.default_rng([spec.seed, step]), lesson(spec, step)
    rows = rows_of(spec, one)
    repeated = repeated_of(rows, spec.autoencoding, random)
    sizes = {one.tokens: repeated, 2 * one.tokens: rows - repeated}
    drawn = [corpus.windows(random, many, size, _STARTS) for size, many in sizes.items() if many]
    contexts, targets = (np.concatenate(each) for each in zip(*map(partial(_halves, one.tokens), drawn), strict=True))
    asked, said = (on_device(each, device) for each in (contexts, targets))
    return Batch(asked, said, repeated, one.slots, spec.distilled)


def _halves(tokens: int, windows: Ints) -> tuple[Ints, Ints]:
    """The spans of ``windows``, and what is to be said behind their slots."""
    return windows[:, :tokens], windows[:, -tokens:]
