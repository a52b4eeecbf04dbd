"""Fewer runs of Python's cycle collector where rows are made by the ten thousand: a quarter of the time went there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Between two collections. Python's default is 700; at 50,000 the cursors that SQLAlchemy leaves in cycles pile up, with
# all they bound: 75 bytes a document, whatever the corpus.
ALLOCATIONS = 10_000


@contextmanager
def seldom() -> Iterator[None]:
    """Collect seldom in this block, or decorated function: for plain rows, which hold no cycles. Not around a model,
    whose cycles may hold a GPU's memory."""
    before = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
