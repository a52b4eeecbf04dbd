"""Kernels of Triton's that are launched while the one before them ends (programmatic dependent launch, NVIDIA's from
Hopper on).

A step of decoding is a chain of short kernels, each of which waits for the one before: a launch takes as long as some
of them. Asked for their weights ahead, too, they were no faster; where a layer's do not fit in the cache, slower.
"""

from __future__ import annotations

import functools

import torch
import triton
from triton.language.extra import cuda

_SINCE = (9, 0)
"""Capability of a GPU that knows it."""


def comes_early(like: torch.Tensor) -> bool:
    """Whether kernels may be launched so where ``like`` lies: they ``follow`` then, before they read anything."""
    return like.is_cuda and _known(like.device)


@functools.cache
def _known(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _SINCE


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def follow():  # type: ignore[no-untyped-def]
    """Wait until the kernels before have ended, and what they wrote is there."""
    cuda.gdc_wait()


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def beckon():  # type: ignore[no-untyped-def]
    """Let the next kernel be launched. Much sooner than at the end, it would take room that this one needs."""
    cuda.gdc_launch_dependents()
