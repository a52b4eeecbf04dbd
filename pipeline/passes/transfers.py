"""Arrays to the device and back, without one waiting for the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

Fetch = Callable[[], NDArray[Any]]
"""Gives the numbers once the device has them, and waits for nothing else."""


def on_device(array: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """``array`` on ``device``. From pinned memory: else the copy would wait until the GPU has done all it was given."""
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def together(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """``parts`` ``[n, ...]`` end to end on ``device``. From the host they are laid into pinned memory at once: laid
    together first, and pinned then, they would be copied twice."""
    alike = {(one.device.type, one.dtype) for one in parts} == {("cpu", parts[0].dtype)}
    if device.type != "cuda" or not alike:
        return torch.cat([one.to(device) for one in parts])
    size = sum(map(len, parts)), *parts[0].shape[1:]
    pinned = torch.empty(size, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(list(parts), out=pinned).to(device, non_blocking=True)


def fetch(numbers: torch.Tensor) -> Fetch:
    """``numbers`` on their way to the host, while the device goes on with what it is given next."""
    if numbers.device.type != "cuda":
        return numbers.clone().numpy  # as they are now
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    there: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record(torch.cuda.current_stream(numbers.device))  # not the current device's: it may be another

    def wait() -> NDArray[Any]:
        there.synchronize()
        found: NDArray[Any] = host.numpy()
        return found

    return wait
