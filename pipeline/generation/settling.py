"""What comes of a round, in one launch: the likeliest tokens, which drafts they are, and all that is written of it.

Kernels of Triton's for what ``verifying`` does in ten small ones of torch's. A program has a row. Likeliest tokens are
found in two steps (``sampling.peaks``), and here is the second.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

Peaks = tuple[torch.Tensor, torch.Tensor]
"""Of each piece of a token's logits the highest, and its place in the piece, ``[tokens, pieces]`` each. Of a token that
is drawn: it, in a single piece."""


def settle(
    peaks: Peaks, size: int, tokens: torch.Tensor, known: torch.Tensor, slots: torch.Tensor, length: torch.Tensor,
    width: int, end: torch.Tensor | None, whose: torch.Tensor | int,
) -> torch.Tensor:  # fmt: skip
    """As of ``verifying.settle``: ``width`` tokens go behind the first ``length`` ``[rows]`` of the lines ``slots`` of
    ``tokens`` ``[lines, places]``, those that count into the lengths of ``known`` ``[lines + 1, 5]``.

    Pieces have ``size`` logits. Drafts end at ``end`` ``[rows]``, or with the last place but one. They are one
    drafter's, or those of ``whose`` ``[lines, places]``.
    """
    rows, marked = len(slots), isinstance(whose, torch.Tensor)
    out = tokens.new_empty(rows, 2 * width + 1)
    ends, marks = length if end is None else end, whose if isinstance(whose, torch.Tensor) else tokens
    how = _how(peaks, width)
    with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
        _settle[rows,](
            *peaks, size, tokens, tokens.shape[1], slots, length, length.stride(0), width, known, ends, ends.stride(0),
            marks, -1 if isinstance(whose, torch.Tensor) else whose, out,
            KNOWN=known.shape[1], ENDS=end is not None, MARKED=marked, WIDTH=how[0], PIECES=how[1], num_warps=how[2],
        )  # fmt: skip
    return out


def write(
    peaks: Peaks, size: int, tokens: torch.Tensor, slots: torch.Tensor, length: torch.Tensor, width: int,
    marks: torch.Tensor | None, number: int,
) -> torch.Tensor:  # fmt: skip
    """As of ``verifying.write``: the length of each row with the drafts that passed and one token, which is drafter
    ``number``'s in ``marks`` ``[lines, places]``, if any."""
    out = length.new_empty(len(slots))
    how = _how(peaks, width)
    with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
        _write[len(slots),](
            *peaks, size, tokens, tokens.shape[1], slots, length, length.stride(0), width,
            tokens if marks is None else marks, number, out,
            MARKED=marks is not None, WIDTH=how[0], PIECES=how[1], num_warps=how[2],
        )  # fmt: skip
    return out


def _how(peaks: Peaks, width: int) -> tuple[int, int, int]:
    """Tokens of a row and pieces of a token, rounded up, and warps for so many."""
    rounded, pieces = triton.next_power_of_2(width), peaks[0].shape[1]
    return rounded, pieces, max(1, min(8, rounded * pieces // 512))


@triton.jit(do_not_specialize=["only"])  # type: ignore[untyped-decorator, unused-ignore]
def _settle(  # type: ignore[no-untyped-def]
    highest, places, size, tokens, line_size, slots, length, stride, width, known, ends, end_stride, marks, only, out,
    KNOWN: tl.constexpr, ENDS: tl.constexpr, MARKED: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row, new = tl.program_id(0), tl.arange(0, WIDTH)
    slot, begin = tl.load(slots + row), tl.load(length + row * stride)
    there = new < width - 1
    if ENDS:
        there = there & (begin + new < tl.load(ends + row * end_stride))
    at = slot * line_size + begin + new
    chosen, count = _agreed(highest, places, size, tokens + at, row, new, there, width, WIDTH, PIECES)
    whose = tl.load(marks + at, mask=there, other=-1) if MARKED else tl.where(there, only, -1).to(tl.int64)
    real = new < width
    tl.store(tokens + at, chosen, mask=real)
    kept_at = tl.load(known + slot * KNOWN + KNOWN - 1)
    tl.store(known + kept_at * KNOWN, begin + count)
    mine = out + row * (2 * width + 1)
    tl.store(mine + new, chosen, mask=real)
    tl.store(mine + width + new, whose, mask=real)
    tl.store(mine + 2 * width, count)


@triton.jit(do_not_specialize=["number"])  # type: ignore[untyped-decorator, unused-ignore]
def _write(  # type: ignore[no-untyped-def]
    highest, places, size, tokens, line_size, slots, length, stride, width, marks, number, out,
    MARKED: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row, new = tl.program_id(0), tl.arange(0, WIDTH)
    begin = tl.load(length + row * stride)
    first = tl.load(slots + row) * line_size + begin
    chosen, count = _agreed(
        highest, places, size, tokens + first + new, row, new, new < width - 1, width, WIDTH, PIECES
    )
    tl.store(tokens + first + new, chosen, mask=new < width)
    if MARKED:
        tl.store(marks + first + count - 1, number)
    tl.store(out + row, begin + count)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _agreed(  # type: ignore[no-untyped-def]
    highest, places, size, at, row, new, there, width, WIDTH: tl.constexpr, PIECES: tl.constexpr
):
    """The likeliest token at each of ``WIDTH`` places of a row, and how many there are up to the first that is not the
    draft ``at`` its place."""
    mine = (row * width + new).to(tl.int64) * PIECES
    mask = (new < width)[:, None] & (tl.arange(0, PIECES) >= 0)[None, :]
    peak = tl.load(highest + mine[:, None] + tl.arange(0, PIECES)[None, :], mask=mask, other=0)
    best = tl.argmax(peak.to(tl.float32), 1)
    chosen = tl.load(places + mine + best, mask=new < width, other=0) + best.to(tl.int64) * size
    passed = there & (tl.load(at, mask=there, other=-2) == chosen)
    tl.debug_barrier()  # before drafts are written over
    return chosen, tl.min(tl.where(passed, width, new + 1), 0).to(tl.int64)
