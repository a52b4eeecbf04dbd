"""The loop: weights of a small model, or low-rank ones beside them, trained step by step from any step on.

Everything random follows from the seed and the number of the step, so that a run cut off anywhere and continued from
its last checkpoint ends with the very weights of one that was not (in float32 on the CPU, with as many threads).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.alignment.losses import Loss, Reader
from pipeline.alignment.measure import Measure
from pipeline.alignment.pairs import Pair
from pipeline.batching import run_packed
from pipeline.models import LoadedModel
from pipeline.stages import Halt
from schemas.align import AlignSpec, TrainingSpec

log = logging.getLogger(__name__)

Passed = Callable[[int, int], None]
"""Called after each pass with its tokens, and with 3 if they went backward too, else 1. May raise, to end the work."""

OPTIMISER = "exp_avg", "exp_avg_sq", "step"
"""What AdamW remembers of each weight."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which pairs a step learns from, and how fast."""

    spec: TrainingSpec
    pairs: int

    @property
    def steps_per_epoch(self) -> int:
        """The last one of an epoch may be smaller."""
        return -(-self.pairs // self.spec.documents_per_step)

    @property
    def steps(self) -> int:
        """In all."""
        return self.steps_per_epoch * self.spec.epochs

    def batch(self, step: int) -> list[int]:
        """Numbers of the pairs of ``step`` (from 0): each epoch goes through all of them in an order of its own."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.spec.seed, epoch]).permutation(self.pairs)
        first = place * self.spec.documents_per_step
        return [int(number) for number in order[first : first + self.spec.documents_per_step]]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0."""
        warm = math.ceil(self.spec.warmup * self.steps)
        if step < warm:
            return self.spec.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """One use, on a model that is the trainer's own. An ``AlignSpec`` gives its layers low-rank weights, and those they
    had stay the same; any other trains its layers themselves."""

    def __init__(self, spec: TrainingSpec, loaded: LoadedModel, teacher: LoadedModel | None, passed: Passed) -> None:
        self.spec, self.device, self._passed = spec, loaded.device, passed
        self.adapted: Any = with_adapter(loaded, spec) if isinstance(spec, AlignSpec) else unfrozen(loaded)
        self._loss = Loss(Reader(loaded), Reader(teacher) if teacher else None, spec.kl_weight)
        self._named = {name: value for name, value in self.adapted.named_parameters() if value.requires_grad}
        self._weights = list(self._named.values())
        self._optimiser = torch.optim.AdamW(
            self._weights, lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=spec.weight_decay
        )
        self._most = spec.batch_tokens  # padded tokens of a pass; sinks when memory runs out

    def measure(self, pairs: Sequence[Pair]) -> list[Measure]:
        """Of each pair's answer, as the weights are now."""
        return self._packed(pairs, self._measure)

    def step(self, pairs: Sequence[Pair], learning_rate: float) -> float:
        """One step of AdamW on the mean loss of all answer tokens of ``pairs``; returns that loss.

        How the pairs are packed into passes changes nothing but the order of a sum.
        """
        tokens = sum(pair.answer_tokens for pair in pairs)
        for weight in self._weights:
            weight.grad = torch.zeros_like(weight)
        loss = sum(self._packed(pairs, lambda some: self._backward(some, tokens)))
        torch.nn.utils.clip_grad_norm_(self._weights, self.spec.clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.step()
        return loss

    def tensors(self, *, optimiser: bool = True) -> dict[str, torch.Tensor]:
        """Weights and optimiser state by name, on the CPU."""
        kept = {f"weight.{name}": value.detach() for name, value in self._named.items()}
        for name, value in self._named.items() if optimiser else ():
            state = self._optimiser.state.get(value, {})
            kept.update({f"{part}.{name}": state[part] for part in OPTIMISER if part in state})
        return {name: tensor.cpu().clone() for name, tensor in kept.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go back to where ``tensors`` were taken."""
        with torch.no_grad():
            for name, value in self._named.items():
                value.copy_(tensors[f"weight.{name}"])
        state = {
            number: {part: tensors[f"{part}.{name}"] for part in OPTIMISER}
            for number, name in enumerate(self._named)
            if f"step.{name}" in tensors
        }
        self._optimiser.load_state_dict({"state": state, "param_groups": self._optimiser.state_dict()["param_groups"]})

    def _packed(self, pairs: Sequence[Pair], work: Callable[[Sequence[Pair]], list[T]]) -> list[T]:
        lengths = [len(pair.ids) for pair in pairs]
        tried = done = 0

        def sized(rows: list[int]) -> list[T]:
            nonlocal tried, done
            size = max(lengths[row] for row in rows) * len(rows)
            tried = max(tried, size)
            made = work([pairs[row] for row in rows])
            done = max(done, size)
            return made

        made = run_packed(lengths, self._most, sized)
        if tried > done:  # a batch was halved: the next step would run into the same wall
            self._most = done
        return made

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.dtype == "bfloat16")

    @torch.no_grad()
    def _measure(self, pairs: Sequence[Pair]) -> list[Measure]:
        with self._autocast():
            found = self._loss.measured(pairs)
        each = torch.split(found.double().cpu(), [pair.answer_tokens for pair in pairs])
        self._passed(sum(len(pair.ids) - 1 for pair in pairs), 1)
        return [Measure(*one.mean(0).tolist()) for one in each]

    def _backward(self, pairs: Sequence[Pair], tokens: int) -> list[float]:
        """Add these pairs' share of the gradient: nothing of it, if memory runs out on the way."""
        with self._autocast():
            loss = self._loss.total(pairs) / tokens
        for weight, gradient in zip(self._weights, torch.autograd.grad(loss, self._weights), strict=True):
            assert weight.grad is not None
            weight.grad += gradient
        self._passed(sum(len(pair.ids) - 1 for pair in pairs), 3)
        return [float(loss.detach()) * pair.answer_tokens / _answers(pairs) for pair in pairs]


def _answers(pairs: Sequence[Pair]) -> int:
    return sum(pair.answer_tokens for pair in pairs)


def unfrozen(loaded: LoadedModel) -> Any:
    """``loaded.model``, of which all is trained but what tokens are at its two ends: these it shares with its teacher,
    or they are most of a small model."""
    model: Any = loaded.model
    model.requires_grad_(True)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.requires_grad_(False)
    return model


def with_adapter(loaded: LoadedModel, spec: AlignSpec) -> Any:
    """``loaded.model`` under peft: every linear layer but the vocabulary head gets low-rank weights, B = 0 at first.

    Raises ``Halt`` where peft is not installed or finds no linear layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise Halt("training needs peft: pip install 'contextmill[align]'") from None
    config = LoraConfig(r=spec.rank, lora_alpha=spec.lora_alpha, target_modules="all-linear")
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, at what peft asks of it
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # peft mends that itself
            torch.manual_seed(spec.seed)
            adapted = get_peft_model(loaded.model, config)
    except ValueError as error:
        raise Halt(f"{spec.model} cannot be given low-rank weights: {error}") from error
    adapted.peft_config["default"].base_model_name_or_path = spec.model  # not where this machine keeps it
    return adapted
