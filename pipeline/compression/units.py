"""Units: the spans of a text that are kept or removed whole. Words with their leading white space, mostly.

A unit is a run of whole tokens. Removing one never splits a character, a word or a number, and never glues the
neighbours together, because white space leads the word it stands before:

- white space belongs to the word after it; punctuation before or inside a word belongs to the word (``$12*3=36``);
- punctuation after a word is a unit of its own, as is punctuation between white space;
- in scripts without spaces, and among emoji, every token is a unit; marks and joined emoji stay with their base;
- a unit longer than ``MAX_TOKENS`` is cut after its inner punctuation, and where that is not enough, between tokens
  at a character's edge: otherwise a megabyte without a space would be all or nothing. None exceeds ``2 * MAX_TOKENS``
  unless a single character does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import (
    JOINING,
    PUNCT,
    REGIONAL,
    SINGLE,
    SPACE,
    WORD,
    ZERO_WIDTH_JOINER,
    kinds_of,
    last_kept,
)

MAX_TOKENS = 16

Ints = NDArray[np.int64]


def cut(text: str, spans: Ints) -> tuple[Ints, Ints]:
    """Cut ``text`` (not empty), whose token i is characters ``spans[i, 0]`` to ``spans[i, 1]``, into units.

    Returns for each unit its first token and its first character. The units cover text and tokens without a gap:
    characters that no token names (trimmed white space) belong to the token after them.
    """
    ends = np.maximum.accumulate(spans[:, 1])
    starts = np.concatenate([[0], ends[:-1]])
    kinds, points = kinds_of(text)
    # Two tokens that share a character both name the whole of it: no edge between them.
    inside = (starts > 0) & (starts < len(text)) & (ends > starts) & (spans[:, 0] >= starts)
    places = np.minimum(starts, len(text) - 1)
    safe = inside & (kinds[places] != JOINING) & (points[places - 1] != ZERO_WIDTH_JOINER)
    begins = safe & _word_edges(kinds)[places]
    begins[0] = True
    inner = safe & (kinds[places - 1] == PUNCT) & (kinds[places] == WORD)
    begins |= inner & _overlong(begins)
    begins |= _every(begins, safe | begins) & _overlong(begins)
    begins |= _every(begins, inside | begins) & _overlong(begins, 2 * MAX_TOKENS)
    first = np.flatnonzero(begins).astype(np.int64)
    return first, starts[first]


def _word_edges(kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether a word-like unit may begin at each character."""
    before = np.concatenate([[SPACE], last_kept(kinds, kinds != JOINING)[:-1]])
    to_space = (kinds == SPACE) & (before != SPACE)
    alone = (before != SPACE) & (before != 0) & ((kinds == SINGLE) | (before == SINGLE))
    flags = (kinds == REGIONAL) ^ (before == REGIONAL)
    # What follows a run of punctuation: only a run before white space or the end trails its word.
    after = last_kept(kinds[::-1], (kinds != PUNCT)[::-1])[::-1]
    trailing = (kinds == PUNCT) & (before == WORD) & ((after == SPACE) | (after == 0))
    edges: NDArray[np.bool_] = to_space | alone | (flags & (before != SPACE)) | trailing
    return edges & np.not_equal(kinds, JOINING)


def _overlong(begins: NDArray[np.bool_], limit: int = MAX_TOKENS) -> NDArray[np.bool_]:
    """Which tokens lie in a unit of more than ``limit`` tokens."""
    first = np.flatnonzero(begins)
    lengths = np.diff(np.append(first, len(begins)))
    return np.repeat(lengths > limit, lengths)


def _every(begins: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Every ``MAX_TOKENS``-th token of each unit, moved on to the next one at a character's edge."""
    index = np.arange(len(begins))
    wanted = (index - last_kept(index, begins)) % MAX_TOKENS == 0
    # A wanted place inside a character passes its wish on to the first allowed place after it.
    group = np.cumsum(wanted)
    fresh = np.flatnonzero(allowed)
    chosen = np.zeros(len(begins), dtype=bool)
    _, once = np.unique(group[fresh], return_index=True)
    chosen[fresh[once]] = True
    return chosen
