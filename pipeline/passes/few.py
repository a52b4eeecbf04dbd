"""Attention of few new tokens over a row's stored columns, in one launch: what a step of decoding spends its time on.

Kernels of Triton's. Each key and value is read once for all heads and all new tokens that see it; the columns of a row
are split among as many programs as keep the GPU busy, and the last of them to end puts their parts together
(Flash-Decoding, https://pytorch.org/blog/flash-decoding/).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pipeline.passes.early import beckon, comes_early, follow

_QUERIES = 64
"""Most queries (heads that share a key, times new tokens) of one program; half of it for heads of over 128."""

_BLOCK = 4096
"""Entries of keys that a program reads at once: there is only so much shared memory."""

_PROGRAMS = 264
"""As many keep the largest GPUs busy, twice the number of their processors."""

_PARTS = 32
"""Most parts of a row's columns: one program puts them together."""

_LEAST = tl.constexpr(96)
"""Columns of a part, at least: of fewer, putting the parts together takes longer than finding them."""

_AT_ONCE = tl.constexpr(8192)
"""Entries of parts that are put together at once: they are held in registers."""

LOG2E = 1.4426950408889634
"""Exponentials are of two here."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """How work is shared out: a row's new tokens among ``blocks`` of ``queries``, its columns among ``parts``."""

    group: int
    width: int
    queries: int
    blocks: int
    parts: int

    @property
    def warps(self) -> int:
        """Of a program."""
        return 8 if self.queries * self.width >= 8192 else 4

    @classmethod
    def of(cls, rows: int, new: int, heads: int, key_heads: int, size: int) -> _Grid:
        group, width = heads // key_heads, triton.next_power_of_2(size)
        queries = min(_QUERIES if width <= 128 else _QUERIES // 2, max(16, triton.next_power_of_2(new * group)))
        blocks = triton.cdiv(new * group, queries)
        return cls(group, width, queries, blocks, max(1, min(_PARTS, _PROGRAMS // (rows * blocks * key_heads))))

    def parts_of(self, query: torch.Tensor, rows: int, key_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the parts of all programs, where there are several: what they found, and at what scale."""
        slots = rows * self.blocks * key_heads * self.parts if self.parts > 1 else 0
        sums = query.new_empty(slots, self.queries, self.width, dtype=torch.float32)
        return sums, query.new_empty(slots, 2, self.queries, dtype=torch.float32)


def attend_few(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, stored: torch.Tensor,
    arrived: torch.Tensor, new: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """``query`` ``[rows * new, heads, size]`` over columns of the store ``[columns, key heads, size]``.

    The columns of row r begin at ``first[r]``; the first of its new tokens sees ``stored[r] + 1`` of them, each later
    one another one. ``arrived`` ``[rows * key heads * blocks of queries]`` or more are zeros, before and afterwards.
    """
    rows, (_, key_heads, size) = len(first), keys.shape
    grid = _Grid.of(rows, new, query.shape[1], key_heads, size)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums, scales = grid.parts_of(query, rows, key_heads)
    query = query if query.stride(-1) == 1 else query.contiguous()
    _attend[rows * grid.blocks, key_heads, grid.parts](
        query, keys, values, out, first, stored, arrived, sums, scales, new, grid.parts,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), out.stride(0), out.stride(1), scale * LOG2E,
        GROUP=grid.group, BLOCKS=grid.blocks, SIZE=size, WIDTH=grid.width, QUERIES=grid.queries,
        COLUMNS=max(16, _BLOCK // grid.width), num_warps=grid.warps,
    )  # fmt: skip
    return out


def attend_new(
    projected: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, values: torch.Tensor,
    first: torch.Tensor, stored: torch.Tensor, arrived: torch.Tensor, new: int, heads: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """The same from what was ``projected`` ``[rows * new, (heads + 2 key heads) * size]``, queries, keys and values as
    they come out of their product: queries and keys are turned by their places, and keys and values stored.

    ``turns``: cosines and sines, ``[rows * new, size]`` each, of rotary embeddings that turn a head's first half with
    its second. The result is ``[rows * new, heads * size]``.
    """
    rows, (_, key_heads, size) = len(first), keys.shape
    grid = _Grid.of(rows, new, heads, key_heads, size)
    out = projected.new_empty(len(projected), heads * size)
    sums, scales = grid.parts_of(projected, rows, key_heads)
    early = comes_early(keys)
    _attend_new[rows * grid.blocks, key_heads, grid.parts](
        projected, *turns, keys, values, out, first, stored, arrived, sums, scales, new, grid.parts,
        keys.stride(0), keys.stride(1), scale * LOG2E,
        HEADS=heads, KEY_HEADS=key_heads, GROUP=grid.group, BLOCKS=grid.blocks, SIZE=size, WIDTH=grid.width,
        QUERIES=grid.queries, COLUMNS=max(16, _BLOCK // grid.width), NEW=max(16, triton.next_power_of_2(new)),
        EARLY=early, num_warps=grid.warps, launch_pdl=early,
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
    each = tl.cdiv(tl.maximum(tl.cdiv(all_columns, parts), _LEAST), COLUMNS) * COLUMNS
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
    most, total, found = _over_columns(
        q, keys, values, base, column_stride, begin, end, before + token, scale, SIZE, WIDTH, QUERIES, COLUMNS
    )

    if working > 1:
        count = arrived + block * tl.num_programs(1) + head
        slot = ((block * tl.num_programs(1) + head) * parts + part).to(tl.int64)
        _put_down(sums, scales, slot, most, total, found, QUERIES, WIDTH)
        if not _last(count, working):
            return
        total, found = _put_together(sums, scales, slot - part, working, QUERIES, WIDTH)

    found = found / tl.where(total > 0, total, 1.0)[:, None]  # rows of the block beyond the last query have none
    o_at = out + asked[:, None] * out_token + mine[:, None] * out_head + across[None, :]
    tl.store(o_at, found.to(out.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend_new(  # type: ignore[no-untyped-def]
    projected, cosines, sines, keys, values, out, first, stored, arrived, sums, scales, new, parts,
    column_stride, head_stride, scale,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, COLUMNS: tl.constexpr, NEW: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        follow()
    block, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = block // BLOCKS
    place = (block % BLOCKS) * QUERIES + tl.arange(0, QUERIES)
    token, mine = place // GROUP, head * GROUP + place % GROUP
    there = token < new
    before = tl.load(stored + row)
    each = tl.cdiv(tl.maximum(tl.cdiv(before, parts), _LEAST), COLUMNS) * COLUMNS
    working = tl.maximum(tl.cdiv(before, each), 1)
    if part >= working:
        return
    begin = part * each
    end = tl.minimum(begin + each, before)

    across = tl.arange(0, WIDTH)
    inside = across < SIZE
    entries: tl.constexpr = (HEADS + 2 * KEY_HEADS) * SIZE
    asked = (row * new + token).to(tl.int64)
    q = _turned(projected + asked * entries + mine * SIZE, asked, cosines, sines, there, SIZE, WIDTH)
    base = tl.load(first + row).to(tl.int64) * column_stride + head * head_stride
    most, total, found = _over_columns(
        q, keys, values, base, column_stride, begin, end, before + token, scale, SIZE, WIDTH, QUERIES, COLUMNS
    )

    if part == working - 1:  # the new columns: nobody else reads them
        late = tl.arange(0, NEW)
        real = late < new
        source = (row * new + late).to(tl.int64)
        k = _turned(projected + source * entries + (HEADS + head) * SIZE, source, cosines, sines, real, SIZE, WIDTH)
        v_at = projected + source * entries + (HEADS + KEY_HEADS + head) * SIZE
        mask = real[:, None] & inside[None, :]
        v = tl.load(v_at[:, None] + across[None, :], mask=mask, other=0.0)
        seen = (late[None, :] <= token[:, None]) & real[None, :]
        most, total, found = _with_columns(q, k, v, seen, scale, most, total, found)
        if block % BLOCKS == 0:
            at = base + (before + late).to(tl.int64)[:, None] * column_stride + across[None, :]
            tl.store(keys + at, k, mask=mask)
            tl.store(values + at, v, mask=mask)

    if EARLY:
        beckon()
    if working > 1:
        count = arrived + block * tl.num_programs(1) + head
        slot = ((block * tl.num_programs(1) + head) * parts + part).to(tl.int64)
        _put_down(sums, scales, slot, most, total, found, QUERIES, WIDTH)
        if not _last(count, working):
            return
        total, found = _put_together(sums, scales, slot - part, working, QUERIES, WIDTH)

    found = found / tl.where(total > 0, total, 1.0)[:, None]
    o_at = out + asked[:, None] * (HEADS * SIZE) + mine[:, None] * SIZE + across[None, :]
    tl.store(o_at, found.to(out.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _turned(  # type: ignore[no-untyped-def]
    at, tokens, cosines, sines, there, SIZE: tl.constexpr, WIDTH: tl.constexpr
):
    """Queries or keys that lie ``at``, each turned as its token's cosines and sines say."""
    across = tl.arange(0, WIDTH)
    mask = there[:, None] & (across < SIZE)[None, :]
    other = tl.where(across < SIZE // 2, across + SIZE // 2, across - SIZE // 2)
    plain = tl.load(at[:, None] + across[None, :], mask=mask, other=0.0)
    swapped = tl.load(at[:, None] + other[None, :], mask=mask, other=0.0).to(tl.float32)
    swapped = tl.where((across < SIZE // 2)[None, :], -swapped, swapped)
    turn = tokens[:, None] * SIZE + across[None, :]
    cosine = tl.load(cosines + turn, mask=mask, other=0.0).to(tl.float32)
    sine = tl.load(sines + turn, mask=mask, other=0.0).to(tl.float32)
    return (plain.to(tl.float32) * cosine + swapped * sine).to(plain.dtype)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _over_columns(  # type: ignore[no-untyped-def]
    q, keys, values, base, column_stride, begin, end, last, scale,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What is found in stored columns ``begin`` to ``end``, of which each query sees those up to its ``last``."""
    across = tl.arange(0, WIDTH)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    found = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(begin, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        at = base + column.to(tl.int64)[:, None] * column_stride + across[None, :]
        mask = (column < end)[:, None] & (across < SIZE)[None, :]
        k = tl.load(keys + at, mask=mask, other=0.0)
        v = tl.load(values + at, mask=mask, other=0.0)
        seen = (column[None, :] <= last[:, None]) & (column < end)[None, :]
        most, total, found = _with_columns(q, k, v, seen, scale, most, total, found)
    return most, total, found


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _with_columns(q, k, v, seen, scale, most, total, found):  # type: ignore[no-untyped-def]
    """What was found so far, and these columns besides: the largest score, the sum of weights, the weighted values."""
    score = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
    larger = tl.maximum(most, tl.max(score, 1))
    level = tl.where(larger == float("-inf"), 0.0, larger)  # a token that sees none of these columns
    weight = tl.exp2(score - level[:, None])
    shrunk = tl.exp2(most - level)
    return (
        larger,
        total * shrunk + tl.sum(weight, 1),
        found * shrunk[:, None] + tl.dot(weight.to(v.dtype), v),
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _put_down(  # type: ignore[no-untyped-def]
    sums, scales, slot, most, total, found, QUERIES: tl.constexpr, WIDTH: tl.constexpr
):
    line, across = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    tl.store(sums + (slot * QUERIES + line[:, None]) * WIDTH + across[None, :], found)
    tl.store(scales + slot * 2 * QUERIES + line, most)
    tl.store(scales + (slot * 2 + 1) * QUERIES + line, total)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _last(count, working):  # type: ignore[no-untyped-def]
    """Whether the other ``working`` programs have put down their parts; the count is zero again then."""
    tl.debug_barrier()  # all of it is written before this program counts
    last = tl.atomic_add(count, 1, sem="acq_rel") == working - 1
    tl.debug_barrier()
    if last:
        tl.store(count, 0)
    return last


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _put_together(  # type: ignore[no-untyped-def]
    sums, scales, slot, working, QUERIES: tl.constexpr, WIDTH: tl.constexpr
):
    """The sum of weights and the weighted values of ``working`` parts from ``slot`` on, in their order."""
    line, across = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    found = tl.zeros((QUERIES, WIDTH), tl.float32)
    some: tl.constexpr = max(1, _AT_ONCE // (QUERIES * WIDTH))
    for begin in range(0, working, some):
        for one in tl.static_range(some):  # written out, so that none waits until the one before is read
            its, there = slot + begin + one, begin + one < working
            theirs = tl.load(scales + its * 2 * QUERIES + line, mask=there, other=float("-inf"), cache_modifier=".cg")
            larger = tl.maximum(most, theirs)
            level = tl.where(larger == float("-inf"), 0.0, larger)
            kept, added = tl.exp2(most - level), tl.exp2(theirs - level)
            sum_at, parts_at = scales + (its * 2 + 1) * QUERIES, sums + its * QUERIES * WIDTH
            total = total * kept + added * tl.load(sum_at + line, mask=there, other=0.0, cache_modifier=".cg")
            place = line[:, None] * WIDTH + across[None, :]
            partly = tl.load(parts_at + place, mask=there, other=0.0, cache_modifier=".cg")
            found = found * kept[:, None] + partly * added[:, None]
            most = larger
    return total, found
