"""Batches of rows for one forward pass: packed by a budget of padded tokens, halved when memory runs out.

What ends up together follows from lengths and budget alone, never from the memory that happens to be free, so a rerun
packs the same batches. Results come back in the order of the input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")


def pack(
    lengths: Sequence[int], budget: int, keys: Sequence[Hashable] | None = None, enough: int | None = None
) -> list[list[int]]:
    """Row numbers in batches of at most ``budget`` padded tokens (rows x the longest), a lone row excepted.

    Longest first, equal ones in their order: neighbours are of like length, so little is padding, and a batch too large
    for the memory shows at the start and not after an hour. Rows of different ``keys`` never share a batch. A batch of
    ``enough`` tokens, where that is given, takes no row that would be padded by over a tenth.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    full: list[list[int]] = []
    open_batches: dict[Hashable, list[int]] = {}
    for row in order:
        key = keys[row] if keys is not None else None
        batch = open_batches.get(key)
        if batch is None or not _joins(lengths[row], lengths[batch[0]], len(batch), budget, enough):
            batch = open_batches[key] = []
            full.append(batch)
        batch.append(row)
    return full


def _joins(length: int, longest: int, rows: int, budget: int, enough: int | None) -> bool:
    """Whether a row of ``length`` fits a batch of ``rows`` rows, and is worth its padding."""
    fits = longest * (rows + 1) <= budget
    return fits and (enough is None or longest * rows < enough or length >= 0.9 * longest)


def run_packed(
    lengths: Sequence[int],
    budget: int,
    work: Callable[[list[int]], Sequence[T]],
    keys: Sequence[Hashable] | None = None,
    enough: int | None = None,
) -> list[T]:
    """Call ``work`` with the row numbers of each batch (``pack``) and return its results in the order of the rows.

    A batch that runs out of memory is halved, down to single rows, and so is every later one as large; a warning says
    so. A single row that does not fit raises the allocator's own error.
    """
    waiting = pack(lengths, budget, keys, enough)[::-1]
    results: dict[int, T] = {}
    most = budget  # padded tokens; sinks when memory runs out
    while waiting:
        rows = waiting.pop()
        padded = lengths[rows[0]] * len(rows)
        if len(rows) == 1 or padded <= most:
            done = _attempt(work, rows)
            if done is not None:
                results.update(zip(rows, done, strict=True))
                continue
            most = padded // 2
            log.warning("out of memory: a batch of %d rows (%d tokens) is halved", len(rows), padded)
        middle = (len(rows) + 1) // 2
        waiting += [rows[middle:], rows[:middle]]
    return [results[row] for row in range(len(lengths))]


def _attempt(work: Callable[[list[int]], Sequence[T]], rows: list[int]) -> Sequence[T] | None:
    """The work's results, or None when it ran out of memory and the batch can still be split."""
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    # Past the except block: only now are the failed call's frames, and the tensors they hold, let go.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On the CPU torch raises a plain RuntimeError, told by its text."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
