"""Pretraining: each step draws windows of the corpus, of which some are to be repeated from their slots and the others
gone on with.

Everything random follows from the seed and the number of the step, so that whoever goes on from a checkpoint ends where
an unbroken run does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.head_loss import nats_of
from pipeline.memory.spans import slots_of
from schemas.memory import Lesson, PretrainSpec

_STATE = "exp_avg", "exp_avg_sq", "step"
"""What AdamW remembers of each weight."""


class Diverged(Exception):  # noqa: N818
    """The loss is no number any more; nothing was learned from it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``contexts`` ``[rows, n]`` into ``slots`` each, ``targets`` ``[rows, n]`` to be said behind them, told by the
    ``tags`` ``[rows]``."""

    contexts: torch.Tensor
    targets: torch.Tensor
    tags: torch.Tensor
    slots: int


def lesson(spec: PretrainSpec, step: int) -> Lesson:
    """The one that this step belongs to."""
    done = 0.0
    for one in spec.lessons:
        done += one.share
        if step < round(done * spec.steps):
            return one
    return spec.lessons[-1]


def rate(spec: PretrainSpec, step: int) -> float:
    """The share of the learning rate: up during the warm-up, then level, at last down to 0 (linearly)."""
    falling = max(1, round(spec.decay * spec.steps))
    return min(1.0, (step + 1) / max(1, spec.warmup), (spec.steps - step) / falling)


def rows_of(spec: PretrainSpec, one: Lesson) -> int:
    """Spans that a step of this lesson learns from."""
    return max(1, spec.tokens_per_step // one.tokens)


def window(spec: PretrainSpec, one: Lesson) -> int:
    """Tokens that a text must have for this lesson: a span, and as many after it unless all spans are repeated."""
    rows = rows_of(spec, one)
    return one.tokens * (1 if round(rows * spec.autoencoding) >= rows else 2)


def batch_of(corpus: Corpus, spec: PretrainSpec, step: int, device: torch.device) -> Batch:
    """What this step learns from."""
    random, one = np.random.default_rng([spec.seed, step]), lesson(spec, step)
    rows = rows_of(spec, one)
    repeated = random.permutation(rows) < round(rows * spec.autoencoding)
    windows = corpus.windows(random, rows, window(spec, one))
    contexts, after = windows[:, : one.tokens], windows[:, -one.tokens :]
    targets = np.where(repeated[:, None], contexts, after)
    tags = np.where(repeated, TAGS.index("AE"), TAGS.index("LM"))
    arrays = contexts, targets, tags
    asked, said, told = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in arrays)
    return Batch(asked, said, told, slots_of(one.tokens, one.ratio))


class Pretrainer:
    """Of ``autoencoder``, in half precision (autocast to bfloat16) or not."""

    def __init__(self, autoencoder: Autoencoder, spec: PretrainSpec, half: bool) -> None:
        self.autoencoder, self.spec, self._half = autoencoder, spec, half
        self._named = autoencoder.trained()
        own = ("memory", "tags", "map.weight")
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [one for name, one in self._named.items() if name not in own], "times": 1.0},
                {"params": [self._named[name] for name in own], "times": spec.memory_rate},
            ],
            lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=autoencoder.tags.is_cuda,
        )  # fmt: skip

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean nats of a target's tokens."""
        with torch.autocast(batch.contexts.device.type, torch.bfloat16, enabled=self._half):
            slots = self.autoencoder.encode(batch.contexts, batch.slots)
            states = self.autoencoder.states(slots, batch.tags, batch.targets)
            head = self.autoencoder.model.get_output_embeddings().weight
            return nats_of(states.to(head.dtype), head, batch.targets).mean()

    def step(self, number: int, batch: Batch) -> torch.Tensor:
        """One step of AdamW; the loss before it, still on the device. Raises ``Diverged``, now or at the next step."""
        loss = self.loss(batch)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        weights = [one for one in self._named.values() if one.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(weights, self.spec.clip_norm)
        if not math.isfinite(float(norm)):
            raise Diverged(f"step {number}: the loss is {float(loss.detach())}, its gradient {float(norm)}")
        for group in self._optimiser.param_groups:
            group["lr"] = self.spec.learning_rate * group["times"] * rate(self.spec, number)
        self._optimiser.step()
        return loss.detach()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and the optimiser's state by name, on the CPU."""
        kept = {f"weight.{name}": one.detach() for name, one in self._named.items()}
        for name, one in self._named.items():
            state = self._optimiser.state.get(one, {})
            kept.update({f"{part}.{name}": state[part] for part in _STATE if part in state})
        return {name: one.cpu().clone() for name, one in kept.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go back to where ``tensors`` were taken."""
        with torch.no_grad():
            for name, one in self._named.items():
                one.copy_(tensors[f"weight.{name}"])
        names = {id(one): name for name, one in self._named.items()}
        weights = [one for group in self._optimiser.param_groups for one in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {
            number: {part: tensors[f"{part}.{names[id(one)]}"] for part in _STATE}
            for number, one in enumerate(weights)
            if f"step.{names[id(one)]}" in tensors
        }
        groups: Any = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})


def pretrain(trainer: Pretrainer, corpus: Corpus, first: int, told: Callable[[int, torch.Tensor], None]) -> None:
    """From step ``first`` to the last; ``told`` of each, with its loss on the device, and may raise."""
    device = trainer.autoencoder.tags.device
    for number in range(first, trainer.spec.steps):
        told(number, trainer.step(number, batch_of(corpus, trainer.spec, number, device)))
