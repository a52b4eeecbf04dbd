"""What stands between the products of a layer, for as many tokens as there are: norm, turning and storing, gate.

Kernels of Triton's, each of which reads what it is given once. Written for a pass of thousands of tokens: a launch more
would cost it nothing, but every launch costs the processor that makes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipeline.passes.launches import Launches

_ROW = 1024
"""Entries that a warp, or a program of one row, holds at once."""

_ROWS = 4
"""Tokens of a program, where they are short."""


def norm(states: torch.Tensor, weights: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The RMS norm (arXiv 1910.07467) of ``states`` ``[tokens, d]``."""
    tokens, size = states.shape
    width = _power(size)
    rows = _ROWS if width <= _ROW else 1
    out = torch.empty_like(states)
    if tokens:
        _norm((-(-tokens // rows), 1), (states, weights, out), (size, epsilon, rows, width), free=(tokens,))
    return out


@Launches
@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator, unused-ignore]
def _norm(  # type: ignore[no-untyped-def]
    states, weights, out, tokens, size, epsilon, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    at, mask = row.to(tl.int64) * size + column, (row < tokens) & (column < size)
    given = tl.load(states + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(given * given, 1) / size + epsilon)
    # Rounded before it is weighted, as models of transformers' do: in float16 the weights may be too large otherwise.
    scaled = (given * scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + at, scaled * tl.load(weights + column, mask=column < size, other=0.0), mask=mask)


def turn(
    projected: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor], heads: int, size: int,
    store: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """What was ``projected`` ``[tokens, (heads + 2 key heads) * size]``, as queries ``[tokens, heads, size]``, keys and
    values; queries and keys are turned by their places, where they lie.

    ``turns``: cosines and sines, ``[tokens, size]`` each, of rotary embeddings that turn a head's first half with its
    second (arXiv 2104.09864). ``store``: places ``[tokens]``, keys and values ``[columns, key heads, size]``; keys and
    values are put there, and given as they lie there.
    """
    tokens, width = projected.shape
    key_heads = (width // size - heads) // 2
    parts = projected.view(tokens, width // size, size)
    query, stored = parts[:, :heads], store is not None
    slots, keys, values = store or (projected, parts[:, heads:-key_heads], parts[:, -key_heads:])
    half, rows = _power(size // 2), _power(heads + key_heads)
    if tokens:
        _turn(
            (tokens, 1), (projected, *turns, slots, keys, values),
            (width, keys.stride(0), keys.stride(1), heads, key_heads, size, half, rows, _power(key_heads), stored),
            warps=max(1, min(8, rows * half // 512)),
        )  # fmt: skip
    return query, keys, values


@Launches
@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _turn(  # type: ignore[no-untyped-def]
    projected, cosines, sines, slots, keys, values, width, column_stride, head_stride,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
    KEY_ROWS: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, ROWS)[:, None], tl.arange(0, HALF)[None, :]
    real = place < SIZE // 2
    mask = real & (head < HEADS + KEY_HEADS)
    mine, angle = projected + token * width, token * SIZE + place
    at = head * SIZE + place
    one = tl.load(mine + at, mask=mask, other=0.0).to(tl.float32)
    two = tl.load(mine + at + SIZE // 2, mask=mask, other=0.0).to(tl.float32)
    one_cosine = tl.load(cosines + angle, mask=real, other=0.0).to(tl.float32)
    two_cosine = tl.load(cosines + angle + SIZE // 2, mask=real, other=0.0).to(tl.float32)
    one_sine = tl.load(sines + angle, mask=real, other=0.0).to(tl.float32)
    two_sine = tl.load(sines + angle + SIZE // 2, mask=real, other=0.0).to(tl.float32)
    kind = projected.dtype.element_ty
    turned_one = (one * one_cosine - two * one_sine).to(kind)
    turned_two = (two * two_cosine + one * two_sine).to(kind)
    own = real & (head < HEADS) if STORED else mask
    tl.store(mine + at, turned_one, mask=own)
    tl.store(mine + at + SIZE // 2, turned_two, mask=own)
    if STORED:
        column = tl.load(slots + token) * column_stride
        key, key_mask = keys + column + (head - HEADS) * head_stride + place, mask & (head >= HEADS)
        tl.store(key, turned_one, mask=key_mask)
        tl.store(key + SIZE // 2, turned_two, mask=key_mask)
        row, whole = tl.arange(0, KEY_ROWS)[:, None], tl.arange(0, 2 * HALF)[None, :]
        value_mask = (row < KEY_HEADS) & (whole < SIZE)
        value = tl.load(mine + (HEADS + KEY_HEADS + row) * SIZE + whole, mask=value_mask, other=0.0)
        tl.store(values + column + row * head_stride + whole, value, mask=value_mask)


def gate(given: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of ``given`` ``[tokens, 2 n]`` times the second (SwiGLU, arXiv 2002.05202)."""
    tokens, size = len(given), given.shape[1] // 2
    out = given.new_empty(tokens, size)
    if tokens:
        _gate((tokens, -(-size // _ROW)), (given, out), (size, _ROW))
    return out


@Launches
@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gate(given, out, size, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask, at = column < size, given + token * 2 * size + column
    opened = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    through = tl.load(at + size, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * size + column, (opened * tl.sigmoid(opened) * through).to(out.dtype.element_ty), mask=mask)


def _power(number: int) -> int:
    """The power of two from ``number`` on. Triton's own function of the kind takes as long as a launch."""
    return 1 << (number - 1).bit_length()
