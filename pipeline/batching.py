"""Batches of rows for one forward pass: packed by a budget of padded tokens, halved when memory runs out.

What ends up together follows from lengths and budget alone, never from the memory that happens to be free, so a rerun
packs the same batches. Results come back in the order of the input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

RELIEF: list[Callable[[], bool]] = []
"""Called when memory is short, to let go of what is kept for speed alone; they say whether there was anything."""

_OUT_OF_MEMORY = "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


def pack(
    lengths: Sequence[int], budget: int, keys: Sequence[Hashable] | None = None, enough: int | None = None,
    padded: bool = True,
) -> list[list[int]]:  # fmt: skip
    """Row numbers in batches of at most ``budget`` tokens, a lone row excepted. Tokens are rows times the longest, or
    where rows are not ``padded`` the sum of their lengths.

    Longest first, equal ones in their order: neighbours are of like length, so little is padding, and a batch too large
    for the memory shows at the start and not after an hour. Rows of different ``keys`` never share a batch. A batch of
    ``enough`` tokens, where that is given, takes no row that would be padded by over a tenth.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    full: list[list[int]] = []
    open_batches: dict[Hashable, list[int]] = {}
    sums: dict[Hashable, int] = {}
    for row in order:
        key = keys[row] if keys is not None else None
        batch = open_batches.get(key)
        if batch is not None:
            longest = lengths[batch[0]]
            tokens = longest * (len(batch) + 1) if padded else sums[key] + lengths[row]
            if tokens > budget or not _worth(lengths[row], longest, len(batch), enough):
                batch = None
        if batch is None:
            batch, sums[key] = [], 0
            open_batches[key] = batch
            full.append(batch)
        batch.append(row)
        sums[key] += lengths[row]
    return full


def _worth(length: int, longest: int, rows: int, enough: int | None) -> bool:
    """Whether a row of ``length`` is worth its padding in a batch of ``rows`` rows."""
    return enough is None or longest * rows < enough or length >= 0.9 * longest


def _tokens(lengths: Sequence[int], rows: Sequence[int], padded: bool) -> int:
    return lengths[rows[0]] * len(rows) if padded else sum(lengths[row] for row in rows)


def run_packed(
    lengths: Sequence[int],
    budget: int,
    work: Callable[[list[int]], Sequence[T]],
    keys: Sequence[Hashable] | None = None,
    enough: int | None = None,
    padded: bool = True,
) -> list[T]:
    """Call ``work`` with the row numbers of each batch (``pack``) and return its results in the order of the rows.

    A batch that runs out of memory is halved, down to single rows, and so is every later one as large; a warning says
    so. A single row that does not fit raises the allocator's own error.
    """
    waiting = pack(lengths, budget, keys, enough, padded)[::-1]
    results: dict[int, T] = {}
    most = budget  # tokens; sinks when memory runs out
    while waiting:
        rows = waiting.pop()
        tokens = _tokens(lengths, rows, padded)
        if len(rows) == 1 or tokens <= most:
            done = attempted(partial(work, rows), last=len(rows) == 1)
            if done:
                results.update(zip(rows, done[0], strict=True))
                continue
            most = tokens // 2
            log.warning("out of memory: a batch of %d rows (%d tokens) is halved", len(rows), tokens)
        middle = (len(rows) + 1) // 2
        waiting += [rows[middle:], rows[:middle]]
    return [results[row] for row in range(len(lengths))]


def attempted(work: Callable[[], T], last: bool) -> list[T]:
    """What ``work`` gives, alone in a list; an empty one when memory ran out, unless this was the ``last`` resort.
    Where others could let go of some it is tried again."""
    try:
        return [work()]
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        relieved = [relieve() for relieve in RELIEF]
        if last and not any(relieved):
            raise
    # Past the except block: only now are the failed call's frames, and the tensors they hold, let go.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return attempted(work, last) if any(relieved) else []


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On the CPU, in the driver and in cuBLAS that is an error of another kind, told by
    its text."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(one in str(error) for one in _OUT_OF_MEMORY)
