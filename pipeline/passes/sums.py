"""Weights plus the product of two low-rank ones, in one kernel of Triton's: each is read once, the sum written once.

torch copies the weights first and adds to the copy then: twice the bytes, twice the launches, four times the
processor's time, of each of a model's products in each pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipeline.passes.launches import Launches

_ROWS, _COLUMNS = 64, 64
"""Of the sum, those of a program."""

_DEPTH = 32
"""Ranks that it multiplies at once."""


def add(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scale: float, into: torch.Tensor) -> None:
    """``weight`` ``[out, in]`` plus ``scale`` times ``up`` ``[out, rank]`` ``down`` ``[rank, in]``, all of one type and
    contiguous, rounded once."""
    rows, columns = weight.shape
    grid = -(-rows // _ROWS), -(-columns // _COLUMNS)
    _add(grid, (weight, up, down, into), (rows, columns, len(down), scale, _ROWS, _COLUMNS, _DEPTH))


@Launches
@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add(  # type: ignore[no-untyped-def]
    weight, up, down, into, rows, columns, rank, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, rank, DEPTH):
        across, along = begin + tl.arange(0, DEPTH)[None, :], begin + tl.arange(0, DEPTH)[:, None]
        left = tl.load(up + row * rank + across, mask=(row < rows) & (across < rank), other=0.0)
        right = tl.load(down + along * columns + column, mask=(along < rank) & (column < columns), other=0.0)
        found = tl.dot(left, right, found, input_precision="ieee")
    at, mask = row.to(tl.int64) * columns + column, (row < rows) & (column < columns)
    given = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(into + at, (given + found * scale).to(into.dtype.element_ty), mask=mask)
