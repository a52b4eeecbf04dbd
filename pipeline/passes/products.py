"""Products of few tokens with a matrix of weights, together with what stands before and behind them in a layer.

A kernel of Triton's. With few tokens a product takes as long as its weights take to be read, and what stands around it
(norm, bias, activation, residual) as long as its own launch: here they are one launch. Every weight is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_PROGRAMS = 264
"""As many keep the largest GPUs busy, twice the number of their processors."""

_FEATURES = 16
"""Features that a program makes."""

_DEPTH = 128
"""Entries of a feature's weights that are read at once."""

_LONG = 2048
"""Entries of which a program of its own is worth while: the last of them puts together what the others made."""


def product(
    given: torch.Tensor, weight: torch.Tensor, arrived: torch.Tensor, *, norm: torch.Tensor | None = None,
    epsilon: float = 0.0, bias: torch.Tensor | None = None, paired: bool = False, residual: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """``given`` ``[tokens, depth]`` times ``weight`` ``[features, depth]``, plus ``bias``: ``[tokens, features]``.

    ``norm``: weights of an RMS norm (arXiv 1910.07467) of what is given. ``paired``: the first half of the weights is a
    gate (SwiGLU, arXiv 2002.05202): SiLU of it times the second half. ``residual`` is added, in its place. ``arrived``:
    zeros, before and afterwards, one for every 16 features.
    """
    tokens, depth = given.shape
    features = len(weight) // 2 if paired else len(weight)
    blocks = triton.cdiv(features, _FEATURES)
    parts = max(1, min(_PROGRAMS // blocks, depth // _LONG)) if norm is None and not paired else 1
    each = triton.cdiv(triton.cdiv(depth, _DEPTH), parts) * _DEPTH
    parts = triton.cdiv(depth, each)
    out = given.new_empty(tokens, features) if residual is None else residual
    width = max(16, triton.next_power_of_2(tokens))
    sums = given.new_empty(blocks * parts if parts > 1 else 0, _FEATURES, width, dtype=torch.float32)
    nothing = given
    _product[blocks, parts](
        given, weight, out, nothing if norm is None else norm, nothing if bias is None else bias, arrived, sums,
        tokens, features, depth, each, epsilon,
        TOKENS=width, FEATURES=_FEATURES, DEPTH=_DEPTH, NORM=norm is not None, BIAS=bias is not None, PAIRED=paired,
        ADDED=residual is not None, PARTS=parts, num_warps=4, num_stages=4,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _product(  # type: ignore[no-untyped-def]
    given, weight, out, norm, bias, arrived, sums, tokens, features, depth, each, epsilon,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    PAIRED: tl.constexpr, ADDED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    block, part = tl.program_id(0), tl.program_id(1)
    token, across = tl.arange(0, TOKENS), tl.arange(0, DEPTH)
    feature = block * FEATURES + tl.arange(0, FEATURES)
    there, real = token < tokens, feature < features
    begin = part * each
    end = tl.minimum(begin + each, depth)
    x_at = given + token.to(tl.int64)[:, None] * depth + across[None, :]
    w_at = weight + feature.to(tl.int64)[:, None] * depth + across[None, :]
    found = tl.zeros((FEATURES, TOKENS), tl.float32)
    other = tl.zeros((FEATURES, TOKENS), tl.float32)
    squares = tl.zeros((TOKENS,), tl.float32)
    for start in range(begin, end, DEPTH):
        inside = start + across < end
        w = tl.load(w_at + start, mask=real[:, None] & inside[None, :], other=0.0)
        x = tl.load(x_at + start, mask=there[:, None] & inside[None, :], other=0.0)
        if NORM:  # a token's own scale is multiplied in at the end
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            scale = tl.load(norm + start + across, mask=inside, other=0.0).to(tl.float32)
            x = (wide * scale[None, :]).to(x.dtype)
        found += tl.dot(w, tl.trans(x))
        if PAIRED:
            second = w_at + features.to(tl.int64) * depth + start
            other += tl.dot(tl.load(second, mask=real[:, None] & inside[None, :], other=0.0), tl.trans(x))

    if PARTS > 1:
        line = tl.arange(0, FEATURES)
        place = line[:, None] * TOKENS + token[None, :]
        mine = (block * PARTS).to(tl.int64) * FEATURES * TOKENS
        tl.store(sums + mine + part * (FEATURES * TOKENS) + place, found)
        tl.debug_barrier()  # all of it is written before this program counts
        others = tl.atomic_add(arrived + block, 1, sem="acq_rel")
        tl.debug_barrier()
        if others < PARTS - 1:
            return
        tl.store(arrived + block, 0)
        found = tl.zeros((FEATURES, TOKENS), tl.float32)
        for one in range(PARTS):  # in their order, whichever came last
            found += tl.load(sums + mine + one * (FEATURES * TOKENS) + place, cache_modifier=".cg")

    if NORM:
        scale = tl.rsqrt(squares / depth + epsilon)
        found = found * scale[None, :]
        other = other * scale[None, :]
    if BIAS:
        found += tl.load(bias + feature, mask=real, other=0.0).to(tl.float32)[:, None]
    if PAIRED:
        found = found * tl.sigmoid(found) * other
    at = out + token.to(tl.int64)[None, :] * features + feature[:, None]
    mask = real[:, None] & there[None, :]
    if ADDED:
        found += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, found.to(out.dtype.element_ty), mask=mask)
