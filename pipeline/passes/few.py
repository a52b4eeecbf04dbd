"""Attention of few new tokens over a row's stored columns, in one launch: what a step of decoding spends its time on.

A kernel of Triton's. Each key and value is read once for all heads and all new tokens that see it; the columns of a row
are split among as many programs as keep the GPU busy, and the last of them to end puts their parts together
(Flash-Decoding, https://pytorch.org/blog/flash-decoding/).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_QUERIES = 64
"""Most queries (heads that share a key, times new tokens) of one program; half of it for heads of over 128."""

_BLOCK = 4096
"""Entries of keys that a program reads at once: there is only so much shared memory."""

_PROGRAMS = 264
"""As many keep the largest GPUs busy, twice the number of their processors."""

_PARTS = 32
"""Most parts of a row's columns: one program puts them together."""


def attend_few(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, stored: torch.Tensor,
    arrived: torch.Tensor, new: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """``query`` ``[rows * new, heads, size]`` over columns of the store ``[columns, key heads, size]``.

    The columns of row r begin at ``first[r]``; the first of its new tokens sees ``stored[r] + 1`` of them, each later
    one another one. ``arrived`` ``[rows * key heads * blocks of queries]`` or more are zeros, before and afterwards.
    """
    rows, (_, key_heads, size) = len(first), keys.shape
    group = query.shape[1] // key_heads
    width = triton.next_power_of_2(size)
    queries = min(_QUERIES if width <= 128 else _QUERIES // 2, max(16, triton.next_power_of_2(new * group)))
    blocks = triton.cdiv(new * group, queries)
    parts = max(1, min(_PARTS, _PROGRAMS // (rows * blocks * key_heads)))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    slots = rows * blocks * key_heads * parts if parts > 1 else 0
    sums = query.new_empty(slots, queries, width, dtype=torch.float32)
    scales = query.new_empty(slots, 2, queries, dtype=torch.float32)
    query = query if query.stride(-1) == 1 else query.contiguous()
    _attend[rows * blocks, key_heads, parts](
        query, keys, values, out, first, stored, arrived, sums, scales, new, parts,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), out.stride(0), out.stride(1),
        scale * 1.4426950408889634,  # exponentials are of two here
        GROUP=group, BLOCKS=blocks, SIZE=size, WIDTH=width, QUERIES=queries, COLUMNS=max(16, _BLOCK // width),
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, out, first, stored, arrived, sums, scales, new, parts,
    query_token, query_head, column_stride, head_stride, out_token, out_head, scale,
    GROUP: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    block, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = block // BLOCKS
    place = (block % BLOCKS) * QUERIES + tl.arange(0, QUERIES)
    token, mine = place // GROUP, head * GROUP + place % GROUP
    there = token < new
    before = tl.load(stored + row)
    all_columns = before + new
    each = tl.cdiv(tl.cdiv(all_columns, COLUMNS), parts) * COLUMNS
    working = tl.cdiv(all_columns, each)
    begin = part * each
    if begin >= all_columns:
        return
    end = tl.minimum(begin + each, all_columns)

    across = tl.arange(0, WIDTH)
    inside = across < SIZE
    asked = (row * new + token).to(tl.int64)
    q_at = query + asked[:, None] * query_token + mine[:, None] * query_head + across[None, :]
    q = tl.load(q_at, mask=there[:, None] & inside[None, :], other=0.0)
    base = tl.load(first + row).to(tl.int64) * column_stride + head * head_stride
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    found = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(begin, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        at = base + column.to(tl.int64)[:, None] * column_stride + across[None, :]
        mask = (column < end)[:, None] & inside[None, :]
        k = tl.load(keys + at, mask=mask, other=0.0)
        score = tl.dot(q, tl.trans(k)) * scale
        score = tl.where(column[None, :] <= before + token[:, None], score, float("-inf"))
        score = tl.where((column < end)[None, :], score, float("-inf"))
        larger = tl.maximum(most, tl.max(score, 1))
        level = tl.where(larger == float("-inf"), 0.0, larger)  # a token that sees none of these columns
        weight = tl.exp2(score - level[:, None])
        shrunk = tl.exp2(most - level)
        total = total * shrunk + tl.sum(weight, 1)
        v = tl.load(values + at, mask=mask, other=0.0)
        found = found * shrunk[:, None] + tl.dot(weight.to(v.dtype), v)
        most = larger

    if working > 1:
        line = tl.arange(0, QUERIES)
        count = arrived + block * tl.num_programs(1) + head
        slot = ((block * tl.num_programs(1) + head) * parts + part).to(tl.int64)
        tl.store(sums + (slot * QUERIES + line[:, None]) * WIDTH + across[None, :], found)
        tl.store(scales + slot * 2 * QUERIES + line, most)
        tl.store(scales + (slot * 2 + 1) * QUERIES + line, total)
        tl.debug_barrier()  # all of it is written before this program counts
        others = tl.atomic_add(count, 1, sem="acq_rel")
        if others < working - 1:
            return
        tl.debug_barrier()
        tl.store(count, 0)
        most = tl.full((QUERIES,), float("-inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        found = tl.zeros((QUERIES, WIDTH), tl.float32)
        for one in range(working):
            its = slot - part + one
            theirs = tl.load(scales + its * 2 * QUERIES + line, cache_modifier=".cg")
            larger = tl.maximum(most, theirs)
            level = tl.where(larger == float("-inf"), 0.0, larger)
            kept, added = tl.exp2(most - level), tl.exp2(theirs - level)
            total = total * kept + added * tl.load(scales + (its * 2 + 1) * QUERIES + line, cache_modifier=".cg")
            partly = tl.load(sums + (its * QUERIES + line[:, None]) * WIDTH + across[None, :], cache_modifier=".cg")
            found = found * kept[:, None] + partly * added[:, None]
            most = larger

    found = found / tl.where(total > 0, total, 1.0)[:, None]  # rows of the block beyond the last query have none
    o_at = out + asked[:, None] * out_token + mine[:, None] * out_head + across[None, :]
    tl.store(o_at, found.to(out.dtype.element_ty), mask=there[:, None] & inside[None, :])
