"""A part of a prompt as its marking leaves it: text, what must stay in it, what has a rate of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NO_SPANS: Ints = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Own:
    """Characters from ``begin`` to ``end`` that have a ``rate`` of their own, which all of their ``region`` share."""

    begin: int
    end: int
    rate: float
    region: int


@dataclass(frozen=True, slots=True)
class Marked:
    """A part without its markup.

    ``protected``: characters ``[n, 2]`` of ``text`` (from, to; sorted, disjoint) that come out byte for byte, and
    nothing beside them but what sets them apart from the word before. ``kept``: others that do, with the words that
    they are in.
    ``rates``: spans with a rate of their own, sorted and disjoint; of rate 1 are only protected ones. ``markup``:
    ``[n, 2]``, places in ``text`` before which markup of so many characters stood in the source. ``reading``: what
    ``text`` says, character by character, where that is something else (escapes of JSON); ``atoms``: characters
    ``[n, 2]`` of it that are never parted.
    """

    text: str
    protected: Ints = field(default_factory=lambda: NO_SPANS)
    kept: Ints = field(default_factory=lambda: NO_SPANS)
    rates: tuple[Own, ...] = ()
    markup: Ints = field(default_factory=lambda: NO_SPANS)
    reading: str | None = None
    atoms: Ints = field(default_factory=lambda: NO_SPANS)


class UnmarkableError(ValueError):
    """The part is not what the spec says it is (no JSON, an open tag). ``code`` is short and stable."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def place_of(text: str, at: int) -> str:
    """Where character ``at`` stands, for people: "line 3, column 14" (both from 1)."""
    line = text.count("\n", 0, at) + 1
    return f"line {line}, column {at - (text.rfind(chr(10), 0, at) + 1) + 1}"


def spans_of(pairs: Iterable[Sequence[int]]) -> Ints:
    """Pairs (from, to) in any order -> ``[n, 2]``, sorted; those that touch or overlap are one. Empty ones vanish."""
    found = np.array(sorted((pair[0], pair[1]) for pair in pairs if pair[1] > pair[0]), dtype=np.int64).reshape(-1, 2)
    if len(found) < 2:
        return found
    ends = np.maximum.accumulate(found[:, 1])
    fresh = np.append(True, found[1:, 0] > ends[:-1])
    last = np.append(np.flatnonzero(fresh)[1:] - 1, len(found) - 1)
    return np.stack([found[fresh, 0], ends[last]], 1)


def within(places: Ints, spans: Ints) -> Ints:
    """The number of the span (sorted, disjoint) that each place lies in; -1: in none."""
    if not len(spans):
        return np.full(len(places), -1)
    number = np.searchsorted(spans[:, 0], places, side="right") - 1
    return np.where((number >= 0) & (places < spans[number, 1]), number, -1)
