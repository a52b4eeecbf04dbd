"""Which characters of a prompt are kept: units and the blank lines between parts as cells of one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.document import SEPARATOR

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """The rendered prompt cut into cells: cell c is the characters from ``edges[c]`` to ``edges[c + 1]``.

    ``cells[u]`` is the cell of unit u and ``parts[u]`` its part; ``leads[p]`` the cell of the blank line before part p,
    -1 for the first. Every cell is a unit or a blank line, so the cells cover the text without a gap.
    """

    edges: Ints
    cells: Ints
    parts: Ints
    leads: Ints

    @classmethod
    def of(cls, places: Sequence[Ints], lengths: Sequence[int]) -> Layout:
        """``places[p]``: where in part p its units begin; ``lengths[p]``: its characters."""
        starts = np.cumsum([0, *(length + len(SEPARATOR) for length in lengths)])
        counts = np.array([len(one) for one in places])
        parts = np.repeat(np.arange(len(counts)), counts)
        # The blank line before a part is a cell like its units, and the first of them.
        cells, leads = np.arange(len(parts)) + parts, np.cumsum(counts + 1) - counts - 2
        edges = np.empty(len(parts) + len(counts), np.int64)
        edges[leads] = starts[:-1] - len(SEPARATOR)  # the first part has none: -1, the last edge of all
        edges[cells] = np.concatenate(places) + starts[parts]
        edges[-1] = starts[-1] - len(SEPARATOR)
        return cls(edges, cells, parts, leads)

    def spans(self, kept: NDArray[np.bool_], order: Sequence[int] | None = None) -> Ints:
        """The characters ``[n, 2]`` (from, to) that the kept units and the blank lines between their parts take.

        Parts of which nothing is kept vanish with their blank line. ``order``: the parts, as they are to stand.
        """
        units = np.flatnonzero(kept)
        taken, alive = np.zeros(len(self.edges) - 1, dtype=bool), np.zeros(len(self.leads), dtype=bool)
        taken[self.cells[units]] = alive[self.parts[units]] = True
        placed = np.flatnonzero(alive) if order is None else np.array([part for part in order if alive[part]], int)
        if (placed[1:] > placed[:-1]).all():
            taken[self.leads[placed[1:]]] = True
            return self._runs(taken, 0, len(taken))
        ends = np.append(self.leads[1:], len(taken))
        pieces = []
        for number, part in enumerate(placed.tolist()):
            if number:
                lead = self.leads[max(part, 1)]  # one blank line is like another; the first part has none before it
                pieces.append(self.edges[None, lead : lead + 2])
            pieces.append(self._runs(taken, int(self.leads[part]) + 1, int(ends[part])))
        return np.concatenate(pieces)

    def _runs(self, taken: NDArray[np.bool_], first: int, last: int) -> Ints:
        """Runs of taken cells among those from ``first`` to ``last``, as characters."""
        around = np.zeros(last - first + 2, dtype=bool)
        around[1:-1] = taken[first:last]
        changes = np.flatnonzero(around[1:] != around[:-1])
        runs: Ints = self.edges[first + changes].reshape(-1, 2)
        return runs


def text_of(text: str, spans: Ints) -> str:
    """The characters of ``text`` that ``spans`` names, joined."""
    return "".join([text[begin:end] for begin, end in spans.tolist()])


def stripped(text: str, spans: Ints) -> Ints:
    """The spans without the white space at the two ends of what they give."""
    whole = text_of(text, spans)
    left, right = len(whole) - len(whole.lstrip()), len(whole.rstrip())
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    begins = ends - (spans[:, 1] - spans[:, 0])
    low = spans[:, 0] + np.maximum(0, left - begins)
    high = spans[:, 1] - np.maximum(0, ends - right)
    left_over: Ints = np.stack([low, high], 1)[low < high]
    return left_over


def in_source(spans: Ints, markup: Ints) -> Ints:
    """Spans of a text -> spans of the source it was before its markup was taken out (``Marked.markup``)."""
    if not len(markup) or not len(spans):
        return spans
    places, removed = np.unique(markup[:, 0]), np.append(0, np.cumsum(markup[:, 1]))
    shifts = removed[np.append(0, np.searchsorted(markup[:, 0], places, side="right"))]
    low = np.searchsorted(places, spans[:, 0], side="right")  # markup before a span shifts it; within, it parts it
    high = np.maximum(low, np.searchsorted(places, spans[:, 1], side="left"))
    cuts = high - low
    span = np.repeat(np.arange(len(spans)), cuts + 1)
    number = np.arange(len(span)) - np.repeat(np.cumsum(cuts + 1) - cuts - 1, cuts + 1)
    shift = shifts[low[span] + number]
    begins = np.where(number == 0, spans[span, 0], places[np.minimum(low[span] + number - 1, len(places) - 1)])
    ends = np.where(number == cuts[span], spans[span, 1], places[np.minimum(low[span] + number, len(places) - 1)])
    found: Ints = np.stack([begins, ends], 1) + shift[:, None]
    return found
