"""The end of the last context, kept as it is: the last lines of a worked example show how an answer looks.

They stand next to the question, and their reasoning is whole where all others are thinned out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.sentences import sentence_ends

Ints = NDArray[np.int64]


def with_end(prompt: Prompt, tokens: float) -> Prompt:
    """The prompt whose last context's end must stay, up to so many ``tokens`` beside what must stay anyway.

    The end begins with a line or a sentence where one fits, else with a unit. ``fixed`` is yet to be counted.
    """
    places = prompt.places("context")
    if not places:
        return prompt
    parts = list(prompt.parts)
    part = parts[places[-1]]
    first = _first(part, tokens)
    parts[places[-1]] = replace(part, forced=part.forced | (np.arange(len(part.forced)) >= first))
    return replace(prompt, parts=tuple(parts))


def _first(part: Part, tokens: float) -> int:
    """The first unit of an end of so many ``tokens``. White space alone is none."""
    from_here = np.cumsum(np.where(part.forced, 0, part.costs)[::-1])[::-1]
    fitting = np.flatnonzero((from_here <= tokens) & (part.places < len(part.text.rstrip())))
    if not len(fitting):
        return len(part.costs)
    begins = fitting[_begins_sentence(part)[fitting]]
    return int(begins[0] if len(begins) else fitting[0])


def _begins_sentence(part: Part) -> NDArray[np.bool_]:
    """Which units are the first of a sentence or line; white space before it goes with it."""
    ends = np.unique([0, *sentence_ends(part.text)])
    before = np.searchsorted(ends, part.places, side="right")
    return np.diff(before, prepend=0) > 0
