"""Out of memory is no reason to fail: the batch is halved, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_halves(work: Callable[[Sequence[Item]], list[Made]], items: Sequence[Item], what: str) -> list[Made]:
    """``work(items)``, or, where memory does not suffice, the results of its halves in order.

    ``work`` gives one result per item. A single item that does not fit raises what the allocator raised.
    """
    try:
        return work(items)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
        if not _out_of_memory(error) or len(items) < 2:
            raise
    # Outside the handler: the traceback held the tensors of the failed try.
    _log.warning("out of memory with %d %s in a batch: going on with %d", len(items), what, (len(items) + 1) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    return in_halves(work, items[:half], what) + in_halves(work, items[half:], what)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
