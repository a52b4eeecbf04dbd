"""Products of few tokens with a matrix of weights, together with what stands before and behind them in a layer.

A kernel of Triton's. With few tokens a product takes as long as its weights take to be read, and what stands around it
(norm, bias, activation, residual) as long as its own launch: here they are one launch. Every weight is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pipeline.passes.early import beckon, comes_early, follow


@dataclass(frozen=True, slots=True)
class Stream:
    """What layers add to, ``states`` ``[tokens, d]``, and what an RMS norm (arXiv 1910.07467) makes of it, in two:
    ``weighted`` by the norm's weights, and the sums of ``squares`` ``[parts, tokens]`` that give each token's scale.

    Who adds to it has the sums at hand; who reads it next, the scale.
    """

    states: torch.Tensor
    weighted: torch.Tensor
    squares: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is shared out: a program of so many ``warps`` makes ``features`` of one of ``parts`` of the depth,
    ``depth`` at a time, of which ``stages`` are on their way."""

    features: int
    depth: int
    parts: int = 1
    warps: int = 4
    stages: int = 4


def tiles(features: int, depth: int, paired: bool, splits: bool) -> Tiles:
    """As many programs as keep a large GPU busy; only what ``splits`` may be cut along its depth, if that is long. The
    numbers were the fastest on an H200, of layers of 135M, 0.5B and 1.5B parameters (``benchmarks.layer_kernels``)."""
    if paired and features <= 4096:
        return Tiles(16, 128, stages=5)
    return Tiles(16, 256, 3 if splits and depth >= 4096 else 1)


def stream_of(ids: torch.Tensor, embeddings: torch.Tensor, norm: torch.Tensor, epsilon: float) -> Stream:
    """The stream of tokens ``ids`` ``[tokens]``, whose ``embeddings`` ``[v, d]`` have these, before a ``norm``."""
    size = embeddings.shape[1]
    states = embeddings.new_empty(len(ids), size)
    weighted, squares = torch.empty_like(states), states.new_empty(1, len(ids), dtype=torch.float32)
    early = comes_early(ids)
    _open[len(ids),](
        ids, embeddings, norm, states, weighted, squares, size, WIDTH=triton.next_power_of_2(size), EARLY=early,
        launch_pdl=early,
    )  # fmt: skip
    return Stream(states, weighted, squares, epsilon)


def product(
    given: torch.Tensor | Stream, weight: torch.Tensor, arrived: torch.Tensor, bias: torch.Tensor | None = None,
    paired: bool = False,
) -> torch.Tensor:  # fmt: skip
    """``given`` ``[tokens, depth]``, or the norm of a stream, times ``weight`` ``[features, depth]``, plus ``bias``.

    ``paired``: the first half of the weights is a gate (SwiGLU, arXiv 2002.05202): SiLU of it times the second half.
    ``arrived``: zeros, before and afterwards, one for every 16 features. Gives ``[tokens, features]``.
    """
    plain = given.weighted if isinstance(given, Stream) else given
    out = plain.new_empty(len(plain), len(weight) // (2 if paired else 1))
    _launch(plain, weight, arrived, out, stream=given if isinstance(given, Stream) else None, bias=bias, paired=paired)
    return out


def add_product(
    given: torch.Tensor, weight: torch.Tensor, arrived: torch.Tensor, to: Stream, norm: torch.Tensor, epsilon: float
) -> Stream:
    """``given`` ``[tokens, depth]`` times ``weight`` ``[d, depth]`` added ``to`` the states of a stream, in their
    place; the stream before the next ``norm``."""
    blocks = triton.cdiv(len(weight), tiles(len(weight), given.shape[1], False, True).features)
    weighted = torch.empty_like(to.weighted)
    squares = to.squares.new_empty(blocks, len(given))
    _launch(given, weight, arrived, to.states, added=(norm, weighted, squares))
    return Stream(to.states, weighted, squares, epsilon)


def _launch(
    given: torch.Tensor, weight: torch.Tensor, arrived: torch.Tensor, out: torch.Tensor, *,
    stream: Stream | None = None, bias: torch.Tensor | None = None, paired: bool = False,
    added: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    (tokens, depth), features = given.shape, out.shape[1]
    how = tiles(features, depth, paired, added is not None)
    blocks = triton.cdiv(features, how.features)
    each = triton.cdiv(triton.cdiv(depth, how.depth), how.parts) * how.depth
    parts, width = triton.cdiv(depth, each), max(8, triton.next_power_of_2(tokens))
    sums = given.new_empty(blocks * parts if parts > 1 else 0, how.features, width, dtype=torch.float32)
    scales = 0 if stream is None else len(stream.squares)
    early, nothing = comes_early(given), given
    _product[blocks, parts](
        given, weight, out, nothing if bias is None else bias, nothing if stream is None else stream.squares,
        *(added or (nothing, nothing, nothing)), arrived, sums,
        tokens, features, depth, each, scales, 0.0 if stream is None else stream.epsilon,
        TOKENS=width, FEATURES=how.features, DEPTH=how.depth, SCALES=triton.next_power_of_2(scales) if scales else 0,
        BIAS=bias is not None, PAIRED=paired, ADDED=added is not None, PARTS=parts, EARLY=early,
        WARPS=how.warps, num_warps=how.warps, num_stages=how.stages, launch_pdl=early,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _open(  # type: ignore[no-untyped-def]
    ids, embeddings, norm, states, weighted, squares, size, WIDTH: tl.constexpr, EARLY: tl.constexpr
):
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = at < size
    if EARLY:
        follow()
    given = tl.load(embeddings + tl.load(ids + token).to(tl.int64) * size + at, mask=mask, other=0.0)
    weights = tl.load(norm + at, mask=mask, other=0.0)
    if EARLY:
        beckon()
    wide = given.to(tl.float32)
    tl.store(states + token * size + at, given, mask=mask)
    tl.store(weighted + token * size + at, (wide * weights.to(tl.float32)).to(given.dtype), mask=mask)
    tl.store(squares + token, tl.sum(wide * wide, 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _product(  # type: ignore[no-untyped-def]
    given, weight, out, bias, squares, norm, weighted, new_squares, arrived, sums,
    tokens, features, depth, each, scales, epsilon,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr, SCALES: tl.constexpr, BIAS: tl.constexpr,
    PAIRED: tl.constexpr, ADDED: tl.constexpr, PARTS: tl.constexpr, EARLY: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    block, part = tl.program_id(0), tl.program_id(1)
    begin = part * each
    end = tl.minimum(begin + each, depth)
    mine = weight + (block * FEATURES).to(tl.int64) * depth
    second = mine + features.to(tl.int64) * depth
    if EARLY:
        follow()

    token, line = tl.arange(0, TOKENS), tl.arange(0, FEATURES)
    feature = block * FEATURES + line
    there, real = token < tokens, feature < features
    at = out + token.to(tl.int64)[None, :] * features + feature[:, None]
    mask = real[:, None] & there[None, :]
    # What is needed in the end is on its way before the loop: it takes as long to come as all weights together.
    if ADDED:
        before = tl.load(at, mask=mask, other=0.0)
        weights = tl.load(norm + feature, mask=real, other=0.0)
    if SCALES:
        one = tl.arange(0, SCALES)
        square_mask = (one < scales)[:, None] & there[None, :]
        square = tl.load(squares + one[:, None] * tokens + token[None, :], mask=square_mask, other=0.0)
    if BIAS:
        shift = tl.load(bias + feature, mask=real, other=0.0)
    # Each warp has a slice of the depth: a tensor core's product waits for its last one that is added to the same sum.
    across: tl.constexpr = DEPTH // WARPS
    slice_at = (tl.arange(0, WARPS) * across)[:, None, None] + tl.arange(0, across)[None, None, :]
    x_at = given + token.to(tl.int64)[None, :, None] * depth + slice_at
    w_at = line.to(tl.int64)[None, :, None] * depth + slice_at
    slices = tl.zeros((WARPS, FEATURES, TOKENS), tl.float32)
    other_slices = tl.zeros((WARPS, FEATURES, TOKENS), tl.float32)
    for start in range(begin, end, DEPTH):
        inside = start + slice_at < end
        w_mask = real[None, :, None] & inside
        x = tl.trans(tl.load(x_at + start, mask=there[None, :, None] & inside, other=0.0), (0, 2, 1))
        slices += tl.dot(tl.load(mine + w_at + start, mask=w_mask, other=0.0), x)
        if PAIRED:
            other_slices += tl.dot(tl.load(second + w_at + start, mask=w_mask, other=0.0), x)
    found, other = tl.sum(slices, 0), tl.sum(other_slices, 0)

    if EARLY:
        beckon()
    if PARTS > 1:
        place = line[:, None] * TOKENS + token[None, :]
        its = sums + (block * PARTS).to(tl.int64) * (FEATURES * TOKENS)
        tl.store(its + part * (FEATURES * TOKENS) + place, found)
        tl.debug_barrier()  # all of it is written before this program counts
        others = tl.atomic_add(arrived + block, 1, sem="acq_rel")
        tl.debug_barrier()
        if others < PARTS - 1:
            return
        tl.store(arrived + block, 0)
        found = tl.zeros((FEATURES, TOKENS), tl.float32)
        for number in tl.static_range(PARTS):  # in their order, whichever came last
            found += tl.load(its + number * (FEATURES * TOKENS) + place, cache_modifier=".cg")

    if SCALES:
        scale = tl.rsqrt(tl.sum(square, 0) / depth + epsilon)
        found = found * scale[None, :]
        other = other * scale[None, :]
    if BIAS:
        found += shift.to(tl.float32)[:, None]
    if PAIRED:
        found = found * tl.sigmoid(found) * other
    if ADDED:
        found += before.to(tl.float32)
    rounded = found.to(out.dtype.element_ty)
    tl.store(at, rounded, mask=mask)
    if ADDED:
        wide = rounded.to(tl.float32)
        place = token.to(tl.int64)[None, :] * features + feature[:, None]
        tl.store(weighted + place, (wide * weights.to(tl.float32)[:, None]).to(rounded.dtype), mask=mask)
        total = tl.sum(tl.where(mask, wide * wide, 0.0), 0)
        tl.store(new_squares + block * tokens + token, total, mask=there)
