"""What a step learns, recorded as a CUDA graph: loss and gradient of parts of one shape, in one launch.

A step is some thousands of kernels. Python takes about as long to launch them as a large GPU to run them, and where
several GPUs share a step each is given as many of them, for less: two were no faster than one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch

from pipeline.batching import out_of_memory
from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.recorded import Graphs, Recorder

log = logging.getLogger(__name__)

_WORTH = 3
"""Times that a shape is learned from before it is recorded: by then what reads it is compiled."""

_WATCHED = 64
"""Shapes that are looked out for at most: of those that come up once each there is no end."""

_ROOM = 0.4
"""The part of a device's memory that steps may take at most: recordings keep as much for themselves, beside what those
of other shapes take."""

_OFF = 0.1
"""That the gradient of any weight may be off: the same kernels in the same order, but for sums that go as they like."""


@runtime_checkable
class Recurring(Protocol):
    """Of a shape that comes up again and again."""

    @property
    def shape(self) -> Hashable:
        """All that tells what is done for it from what is done for others, but for the numbers in ``tensors``."""
        ...

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """What it consists of, on the device."""
        ...

    def copy(self) -> Self:
        """The same in memory of its own."""
        ...


class Replays:
    """``learn`` gives ``weights`` their ``grad``, where there was none, and says the loss; so does this. ``settle``
    waits for what others have to do with the step before."""

    def __init__(
        self, learn: Callable[[Any], torch.Tensor], weights: Sequence[torch.nn.Parameter], device: torch.device,
        settle: Callable[[], None],
    ) -> None:  # fmt: skip
        self._learn, self._weights, self._device, self._settle = learn, weights, device, settle
        make = RECORDERS.get(device.type)
        self._recorder = make(device) if make else None
        self._first: dict[Hashable, Recurring] = {}
        self._times = Counter[Hashable]()
        self._known: dict[Hashable, _Replay] = {}

    def __call__(self, part: Recurring) -> torch.Tensor:
        """The loss is to be read, and the gradients are to be used, before the next one."""
        if known := self._known.get(part.shape):
            return known(part)
        if self._recorder is None:
            return self._learn(part)
        if part.shape not in self._first:
            if len(self._first) >= _WATCHED:
                return self._learn(part)
            self._first[part.shape] = part.copy()
        self._times[part.shape] += 1
        if self._times[part.shape] <= _WORTH:
            return self._learn(part)
        if not _roomy(self._device):
            log.info("steps are not recorded: they take more than %.0f%% of the memory", 100 * _ROOM)
            self._stop()
            return self._learn(part)
        return self._record(self._recorder, part)

    def give_back(self) -> None:
        """Nothing is recorded any more, nor replayed: other work may have the memory."""
        self._stop()
        self._known.clear()
        self._forget()

    def _stop(self) -> None:
        self._recorder = None
        self._first.clear()

    def _record(self, recorder: Recorder, part: Recurring) -> torch.Tensor:
        """Recorded with another part, replayed, and then learned as ever: what was learned last is what counts."""
        one, replayed, why = None, list[torch.Tensor | None](), ""
        self._settle()  # from here on the device is waited for
        try:
            with LAUNCHING:
                one = _Replay(recorder, self._learn, self._weights, self._first.pop(part.shape))
            one(part)
            replayed = [None if it.grad is None else it.grad.clone() for it in self._weights]
        except Exception as error:  # noqa: BLE001  drivers and kernels fail in ways of their own
            why = "memory ran out" if out_of_memory(error) else " ".join(str(error).split())[:300]
            why = why or type(error).__name__
            one = None
            if out_of_memory(error):  # what follows needs some, and recordings have most
                self.give_back()
        self._forget()
        loss = self._learn(part)
        if why := why or self._doubt(replayed):
            self._stop()
            log.warning("steps are launched kernel by kernel, and may take longer: a recording is none: %s", why)
        elif one:
            self._known[part.shape] = one
        return loss

    def _doubt(self, replayed: Sequence[torch.Tensor | None]) -> str:
        """Why they cannot pass for the gradients that are there; empty where they can."""
        pairs = [(one, its.grad) for one, its in zip(replayed, self._weights, strict=True)]
        if any((one is None) != (its is None) for one, its in pairs):
            return "it gives a gradient to other weights"
        known = [(one.float(), its.float()) for one, its in pairs if one is not None and its is not None]
        off = torch.stack([(one - its).norm() for one, its in known])
        sizes = torch.stack([its.norm() for _, its in known])
        if not bool(sizes.isfinite().all()):
            return ""  # which is said of the step
        worst = float((off / sizes.clamp_min(torch.finfo(torch.float32).tiny)).max())
        return "" if worst <= _OFF else f"a gradient is {worst:.2f} off"

    def _forget(self) -> None:
        for one in self._weights:
            one.grad = None


class _Replay:
    """Of parts of one shape."""

    def __init__(
        self, recorder: Recorder, learn: Callable[[Any], torch.Tensor], weights: Sequence[torch.nn.Parameter],
        part: Recurring,
    ) -> None:  # fmt: skip
        self._part, self._weights = part, weights

        def run() -> tuple[torch.Tensor | None, ...]:
            for one in weights:
                one.grad = None
            loss = learn(part)
            return loss, *(one.grad for one in weights)

        self._again, (self._loss, *self._grads) = recorder(run)

    def __call__(self, part: Recurring) -> torch.Tensor:
        for mine, its in zip(self._part.tensors, part.tensors, strict=True):
            mine.copy_(its)
        self._again()
        for one, grad in zip(self._weights, self._grads, strict=True):
            one.grad = grad
        loss: torch.Tensor = self._loss
        return loss


def _roomy(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    whole = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_allocated(device) <= _ROOM * whole


def _graphs(device: torch.device) -> Recorder:
    """For one training, whose memory is its own."""
    torch.cuda.reset_peak_memory_stats(device)
    return Graphs(device, torch.cuda.graph_pool_handle())


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": _graphs}
"""By kind of device."""
