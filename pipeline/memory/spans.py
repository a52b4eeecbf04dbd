"""How an encoder reads a span: where its memory tokens stand, and which tokens each slot is for.

Three layouts behind one: the paper's memory tokens ``appended`` to the span; ``interleaved``, one behind the tokens
that it is to hold, which are never far; and ``pooled``, no memory tokens but means of what is said at the span's own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.memory import Layout

Ints = NDArray[np.int64]

Parts = tuple[tuple[int, int], ...]
"""(tokens, slots) of each span that a context is cut into, in their order."""


def cut(tokens: int, most: int, more: int = 0) -> list[int]:
    """How long the spans of a context are, in their order: as few as may be and so many ``more``, of ``most`` tokens
    each at most, and of like length, so that none is a remainder of a few."""
    count = min(tokens, -(-tokens // most) + more)
    ends = [number * tokens // count for number in range(1, count + 1)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def spans_of(ids: Ints, most: int, more: int = 0) -> list[Ints]:
    """The spans of a context, by its token ids."""
    return np.split(ids, np.cumsum(cut(len(ids), most, more))[:-1])


@dataclass(frozen=True, slots=True)
class Reading:
    """Of a span of n tokens into k slots.

    ``order`` ``[n + k]`` (``[n]`` where pooled): the number of the token that is read, n + i for memory token i.
    ``places`` ``[k]``: where in that the memory tokens stand, or where the last token of each slot does.
    ``ends`` ``[k]``: the number of tokens up to which slot i goes; it begins where the one before ends.
    """

    order: Ints
    places: Ints
    ends: Ints


@functools.lru_cache(maxsize=4096)
def reading(tokens: int, slots: int, layout: Layout) -> Reading:
    """Tokens are shared out evenly, in their order; most spans of a corpus are of a few lengths. Raises ``ValueError``
    unless 1 <= ``slots`` <= ``tokens``."""
    if not 1 <= slots <= tokens:
        raise ValueError(f"{tokens} tokens cannot be read into {slots} slots")
    ends = np.arange(1, slots + 1) * tokens // slots
    numbers = np.arange(tokens)
    if layout == "pooled":
        return Reading(numbers, ends - 1, ends)
    if layout == "appended":
        return Reading(np.arange(tokens + slots), tokens + np.arange(slots), ends)
    order = np.insert(numbers, ends, tokens + np.arange(slots))
    return Reading(order, ends + np.arange(slots), ends)
