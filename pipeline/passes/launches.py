"""Launches of Triton's kernels at a microsecond or two of the processor's time each.

Triton itself looks at every argument of every launch to find which of a kernel's programs is meant: 7 to 16 us, four
times a layer. Where types, alignment and all numbers but one are as they were, so is the program.
"""

from __future__ import annotations

from typing import Any

import torch

_ALIGNED = 16
"""Bytes: programs are compiled for addresses that are multiples of it, or for any."""


class Launches:
    """Launches ``kernel``, whose arguments are tensors, then numbers that programs are not compiled for
    (``do_not_specialize``), then all others in their order."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._programs: dict[Any, Any] = {}

    def __call__(
        self, grid: tuple[int, int], tensors: tuple[torch.Tensor, ...], fixed: tuple[Any, ...],
        free: tuple[int, ...] = (), warps: int = 4,
    ) -> None:  # fmt: skip
        """``grid`` programs of ``warps`` warps each, on the current device and stream."""
        kinds = [(one.dtype, one.data_ptr() % _ALIGNED == 0) for one in tensors]
        key = tensors[0].device, warps, fixed, *kinds
        if (program := self._programs.get(key)) is not None:
            program[(*grid, 1)](*tensors, *free, *fixed)
            return
        # Interpreted kernels have no programs: None, and next time it comes here again.
        self._programs[key] = self.kernel[grid](*tensors, *free, *fixed, num_warps=warps)
