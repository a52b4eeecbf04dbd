"""What a kernel of Triton's does while the one before it still runs (programmatic dependent launch, NVIDIA's from
Hopper on): it is launched, and has what it will read of weights and stored columns brought to the L2 cache.

In a step of decoding one short kernel waits for another, and the memory, whose speed bounds it all, would wait as well.
Nothing is computed ahead: what was fetched too early, or in vain, is a hint without effect.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

_SINCE = (9, 0)
"""Capability of a GPU that knows it."""


def goes_ahead(like: torch.Tensor) -> bool:
    """Whether kernels may go ahead where ``like`` lies. All of a chain must ``follow``, or none."""
    return like.is_cuda and _known(like.device)


@functools.cache
def _known(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _SINCE


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def fetch(at, stride, lines, entries):  # type: ignore[no-untyped-def]
    """Have ``lines`` of ``entries`` each, from ``at`` on and ``stride`` entries apart, brought to the cache.

    Each line is asked for by a thread of its own; it begins and ends at a multiple of 16 bytes.
    """
    size: tl.constexpr = at.dtype.element_ty.primitive_bitwidth // 8
    tl.inline_asm_elementwise(
        """{
        .reg .pred asks;
        .reg .u32 thread;
        .reg .u64 line;
        mov.u32 thread, %tid.x;
        setp.lt.u32 asks, thread, $3;
        mad.wide.u32 line, thread, $2, $1;
        @asks cp.async.bulk.prefetch.L2.global [line], $4;
        mov.u32 $0, 0;
        }""",
        "=r,l,r,r,r",
        [at.to(tl.uint64), stride * size, lines, entries * size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def follow():  # type: ignore[no-untyped-def]
    """Let the next kernel come; wait until those before have ended and what they wrote is there."""
    cuda.gdc_launch_dependents()
    cuda.gdc_wait()
