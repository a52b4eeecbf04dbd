"""Seconds until a device is idle again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result of ``work``, and its seconds, what the device still has to do before not included."""
    wait(device)
    begun = time.perf_counter()
    result = work()
    wait(device)
    return result, time.perf_counter() - begun


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given; a CPU has always."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
