"""The steps of a training: a gradient of all their parts, AdamW, and weights and optimiser to go on from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.lessons import rate
from pipeline.memory.replaying import Recurring, Replays
from pipeline.memory.sharing import Alone
from pipeline.passes.transfers import Fetch, fetch
from schemas.memory import EncoderTraining

_STATE = "exp_avg", "exp_avg_sq", "step"
"""What AdamW remembers of each weight."""


class Diverged(Exception):  # noqa: N818
    """The loss of step ``number`` is no number any more; nothing was learned from it."""

    def __init__(self, number: int, loss: float, norm: float) -> None:
        super().__init__(f"step {number}: the loss is {loss}, its gradient {norm}")
        self.number = number


class Part(Protocol):
    """What is learned in one pass; a step has one or several. One that is ``Recurring`` may be recorded."""

    def loss(self, coder: Autoencoder) -> torch.Tensor:
        """Its share of the step's loss, which is the sum of all."""
        ...


class Trainer:
    """Of ``autoencoder``, in half precision (autocast to bfloat16) or not."""

    def __init__(self, autoencoder: Autoencoder, spec: EncoderTraining, half: bool) -> None:
        self.autoencoder, self.spec, self._half = autoencoder, spec, half
        self._sharing = Alone()
        self._latest: tuple[int, Fetch] | None = None
        self._late = autoencoder.tags.is_cuda
        self._lost = torch.zeros((), device=autoencoder.tags.device)
        self._named = autoencoder.trained()
        weights, device = list(self._named.values()), autoencoder.tags.device
        self._replays = Replays(self._backward, weights, device, lambda: self._sharing.settle())
        own = ("memory", "tags", "first", "map.weight")
        self._optimiser: Any = torch.optim.AdamW(
            [
                {"params": [one for name, one in self._named.items() if name not in own], "times": 1.0},
                {"params": [self._named[name] for name in own], "times": spec.memory_rate},
            ],
            lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True,
        )  # fmt: skip

    def share(self, sharing: Alone) -> None:
        """From now on each step is one of several processes'."""
        self._sharing = sharing

    def step(self, number: int, *parts: Part) -> torch.Tensor:
        """One step of AdamW on its parts, of whatever process; the loss before it, still on the device.

        A step whose gradient is no number changes nothing, and raises ``Diverged``: on a GPU only when the next is on
        its way, since that need not wait for it.
        """
        loss = torch.zeros((), device=self.autoencoder.tags.device)
        sums = dict[str, torch.Tensor]()
        self._optimiser.zero_grad(set_to_none=True)
        for part in parts:
            loss += self._replays(part) if isinstance(part, Recurring) else self._backward(part)
            if len(parts) > 1:  # each may write its gradients where the one before did
                self._add_to(sums)
        for name, one in sums.items():
            self._named[name].grad = one
        loss = self._sharing.summed(list(self._named.values()), loss)
        weights = [one for one in self._named.values() if one.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(weights, self.spec.clip_norm)
        # What is fused looks here: nothing is learned from such a step, nor from one behind it.
        self._lost = self._optimiser.found_inf = torch.maximum(self._lost, (~norm.isfinite()).float())
        for group in self._optimiser.param_groups:
            group["lr"] = self.spec.learning_rate * group["times"] * rate(self.spec, number)
        self._optimiser.step()
        before, self._latest = self._latest, (number, fetch(torch.stack([loss, norm])))
        _check(before) if self._late else self.settle()
        return loss

    def settle(self) -> None:
        """Wait until it is known of the last step that it counts. Raises ``Diverged``."""
        self._sharing.settle()
        latest, self._latest = self._latest, None
        _check(latest)

    def rest(self) -> None:
        """There is no step for a while: what is measured may have the memory of what was recorded."""
        self._replays.give_back()

    def _add_to(self, sums: dict[str, torch.Tensor]) -> None:
        """What gradients there are, which are gone then."""
        for name, one in self._named.items():
            if one.grad is not None:
                sums[name] = sums[name].add_(one.grad) if name in sums else one.grad.clone()
                one.grad = None

    def _backward(self, part: Part) -> torch.Tensor:
        with torch.autocast(self.autoencoder.tags.device.type, torch.bfloat16, enabled=self._half):
            loss = part.loss(self.autoencoder)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and the optimiser's state by name, on the CPU. Raises ``Diverged``."""
        self.settle()
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


def train(
    trainer: Trainer, parts: Callable[[int], Sequence[Part]], first: int, told: Callable[[int, torch.Tensor], None]
) -> None:
    """From step ``first`` to the last, each of its ``parts``; ``told`` of each, with its loss on the device, and may
    raise."""
    for number in range(first, trainer.spec.steps):
        told(number, trainer.step(number, *parts(number)))
    trainer.settle()
    trainer.rest()


def _check(step: tuple[int, Fetch] | None) -> None:
    if step is None:
        return
    number, numbers = step
    loss, norm = numbers().tolist()
    if not math.isfinite(norm):
        raise Diverged(number, loss, norm)
