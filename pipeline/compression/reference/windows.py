"""The plan of token-level compression: which share of which tokens each window may keep.

A window is a list of ``(tokens, ratio)``. The library lays it out from lengths before anything is scored, and counts
a window's tokens anew from what is left of the text, so that plan and text may drift apart by a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.reference.codec import Codec
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.tags import Segment

Ints = NDArray[np.int64]
Window = tuple[tuple[int, float], ...]

BETWEEN = "\n\n"
_LOOK_BACK = 3
"""Tokens decoded together to see which characters the last of them adds."""


def plain_windows(lengths: Sequence[int], target: float, size: int, shifts: Sequence[float]) -> list[Window]:
    """The plan for contexts of these lengths in tokens; ``shifts`` is added to the ratio of each, within [0, 1].

    Two tokens are counted for the blank line after each context. The first window is one token short: the count
    begins at 1.
    """
    counts = [length + 2 for length in lengths]
    base = target / (sum(counts) + 1)
    ratios = [float(max(min(1, base + shift), 0)) for shift in shifts]
    plan: list[Window] = []
    begun: list[tuple[int, float]] = []
    filled = 1
    for count, ratio in zip(counts, ratios, strict=False):
        if filled + count < size:
            filled += count
            begun.append((count, ratio))
            continue
        plan.append((*begun, (size - filled, ratio)))
        filled += count - size
        if filled > size:
            plan += [((size, ratio),)] * (filled // size)
            filled %= size
        begun = [(filled, ratio)] if filled else []
    return [*plan, tuple(begun)] if begun else plan


def tagged_windows(
    codec: Codec, ids: Ints, contexts: Sequence[str], segments: Sequence[Sequence[Segment]], size: int
) -> list[Window]:
    """The plan for the tokens ``ids`` of tagged contexts: every token has the ratio of the segment it lies in.

    A token across segments has the least of their ratios, or 1 if one of them is not to be compressed. Raises
    ``Crash`` where the tokens do not decode to the text.
    """
    spans = _spans(contexts, segments)
    if codec.decode(ids) != BETWEEN.join(contexts):
        raise Crash("the contexts do not survive being tokenised and decoded")
    ratios = _token_ratios(_added(codec, ids), spans)
    return [_runs(ratios[first : first + size]) for first in range(0, len(ratios), size)]


def _spans(contexts: Sequence[str], segments: Sequence[Sequence[Segment]]) -> list[Segment]:
    """All segments, the blank line after a context counted to its last one."""
    spans: list[Segment] = []
    for place, (text, parts) in enumerate(zip(contexts, segments, strict=True)):
        left = len(text)
        for number, part in enumerate(parts):
            length = min(part.length, left)
            left -= length
            joint = len(BETWEEN) if number == len(parts) - 1 and place < len(contexts) - 1 else 0
            spans.append(Segment(length + joint, part.rate if part.compress else 1.0, part.compress))
    if sum(span.length for span in spans) != len(BETWEEN.join(contexts)):
        raise Crash("the segments do not cover the contexts")
    return spans


def _added(codec: Codec, ids: Ints) -> list[int]:
    """Characters that each token adds to the text decoded from the two before it."""
    cuts = [(max(0, place - _LOOK_BACK + 1), place) for place in range(len(ids))]
    before = codec.decode_many([ids[first:place] for first, place in cuts])
    until = codec.decode_many([ids[first : place + 1] for first, place in cuts])
    return [max(0, len(text) - len(start)) for text, start in zip(until, before, strict=True)]


def _token_ratios(added: Sequence[int], spans: Sequence[Segment]) -> list[float]:
    """The ratio of every token, given the characters each one adds."""
    ratios: list[float] = []
    here, seen = 0, 0
    try:
        for length in added:
            met = []
            while length and length >= spans[here].length - seen:
                met.append(spans[here])
                length -= spans[here].length - seen
                here, seen = here + 1, 0
            if length or not met:
                met.append(spans[here])
            ratios.append(min(one.rate for one in met) if all(one.compress for one in met) else 1.0)
            seen += length
    except IndexError:
        raise Crash("more characters are decoded than the segments have") from None
    return ratios


def _runs(ratios: Sequence[float]) -> Window:
    """Equal neighbours together."""
    runs: list[tuple[int, float]] = []
    for ratio in ratios:
        if runs and runs[-1][1] == ratio:
            runs[-1] = (runs[-1][0] + 1, ratio)
        else:
            runs.append((1, ratio))
    return tuple(runs)
