"""What a step learns, recorded as a CUDA graph: loss and gradient of parts of one shape, in one launch.

A step is some thousands of kernels. Python takes about as long to launch them as a large GPU to run them, and where
several GPUs share a step each is given as many of them, for less: two were no faster than one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, Self

import torch

from pipeline.passes import recorded
from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.packable import doubt

log = logging.getLogger(__name__)

_WORTH = 3
"""Times that a shape is learned from before it is recorded: by then what reads it is compiled."""

_ROOM = 0.4
"""The part of a device's memory that steps may have taken at most: a recording keeps as much for itself."""

_OFF = 0.02
"""That a replayed gradient may be off: the same kernels in the same order, but for sums that go as they like."""


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
    """``learn`` gives ``weights`` their ``grad``, where there was none, and says the loss; so does this."""

    def __init__(
        self, learn: Callable[[Any], torch.Tensor], weights: Sequence[torch.nn.Parameter], device: torch.device
    ) -> None:
        self._learn, self._weights, self._device = learn, weights, device
        make = recorded.RECORDERS.get(device.type)
        self._recorder = make(device) if make else None
        self._times = Counter[Hashable]()
        self._known: dict[Hashable, _Replay] = {}

    def __call__(self, part: Recurring) -> torch.Tensor:
        """The loss is to be read, and the gradients are to be used, before the next one."""
        if known := self._known.get(part.shape):
            return known(part)
        self._times[part.shape] += 1
        if self._recorder is None or self._times[part.shape] <= _WORTH or not _roomy(self._device):
            return self._learn(part)
        return self._record(self._recorder, part)

    def _record(self, recorder: recorded.Recorder, part: Recurring) -> torch.Tensor:
        """Recorded, replayed, and then learned as ever: what was learned last is what counts."""
        one, replayed, why = None, torch.zeros(0), ""
        try:
            with LAUNCHING:
                one = _Replay(recorder, self._learn, self._weights, part)
            one(part)
            replayed = self._slopes()
        except Exception as error:  # noqa: BLE001  drivers and kernels fail in ways of their own
            why = " ".join(str(error).split())[:300] or type(error).__name__
        self._forget()
        loss = self._learn(part)
        if why := why or doubt(lambda: (replayed, self._slopes()), _OFF):
            self._recorder = None
            log.warning("steps are launched kernel by kernel, and take longer: a recording is not to be used: %s", why)
        elif one:
            self._known[part.shape] = one
        return loss

    def _slopes(self) -> torch.Tensor:
        return torch.cat([one.grad.flatten() for one in self._weights if one.grad is not None])

    def _forget(self) -> None:
        for one in self._weights:
            one.grad = None


class _Replay:
    """Of parts of one shape."""

    def __init__(
        self, recorder: recorded.Recorder, learn: Callable[[Any], torch.Tensor],
        weights: Sequence[torch.nn.Parameter], part: Recurring,
    ) -> None:  # fmt: skip
        self._part, self._weights = part.copy(), weights

        def run() -> Any:
            for one in weights:
                one.grad = None
            loss = learn(self._part)
            return loss, *(one.grad for one in weights)

        self._again, found = recorder(run)
        self._loss, *self._grads = found

    def __call__(self, part: Recurring) -> torch.Tensor:
        for mine, its in zip(self._part.tensors, part.tensors, strict=True):
            mine.copy_(its)
        self._again()
        for one, grad in zip(self._weights, self._grads, strict=True):
            one.grad = grad
        return self._loss


def _roomy(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    whole = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_allocated(device) <= _ROOM * whole
