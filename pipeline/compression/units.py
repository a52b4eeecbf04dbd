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

from collections.abc import Sequence
from dataclasses import dataclass

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
from schemas.compress import Unit

MAX_TOKENS = 16

Ints = NDArray[np.int64]
Places = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Cut:
    """A text's units: the ``first`` token and the first character (``places``) of each, and which are ``forced``."""

    first: Ints
    places: Ints
    forced: NDArray[np.bool_]


def cut(texts: Sequence[str], spans: Sequence[Places], protected: Sequence[Ints], unit: Unit = "word") -> list[Cut]:
    """Cut texts (none empty, each with tokens) into units; token i of text t is characters ``spans[t][i]`` (from, to).

    Units cover text and tokens without a gap: characters that no token names (trimmed white space) belong to the token
    after them. Those that hold anything of ``protected`` (characters ``[n, 2]`` of each text) are forced.
    """
    if not texts:
        return []
    # All texts at once, a space between them: one pass of array work instead of one per text.
    sizes = np.array([len(one) for one in spans])
    heads = np.cumsum(sizes) - sizes
    offsets = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])], dtype=np.int32)
    shift = np.repeat(offsets, sizes)
    flat = np.concatenate(spans) + shift[:, None]
    ends = np.maximum.accumulate(flat[:, 1])
    starts = np.roll(ends, 1)
    starts[heads] = offsets
    held = _touching(
        starts, ends, np.concatenate([one + offset for one, offset in zip(protected, offsets, strict=True)])
    )
    first = np.flatnonzero(_begins(" ".join(texts), starts, ends, flat[:, 0] >= starts, heads, held, unit))
    forced = np.logical_or.reduceat(held, first)
    bounds = np.searchsorted(first, heads[1:])
    tokens = np.split(first - np.repeat(heads, sizes)[first], bounds)
    places = np.split((starts - shift)[first].astype(np.int64), bounds)
    return [Cut(*one) for one in zip(tokens, places, np.split(forced, bounds), strict=True)]


def _touching(starts: Places, ends: Places, spans: Ints) -> NDArray[np.bool_]:
    """Which tokens share a character with one of ``spans`` (sorted, disjoint)."""
    if not len(spans):
        return np.zeros(len(starts), dtype=bool)
    after = np.minimum(np.searchsorted(spans[:, 1], starts, side="right"), len(spans) - 1)
    touching: NDArray[np.bool_] = (spans[after, 0] < ends) & (spans[after, 1] > starts)
    return touching


def _begins(
    text: str, starts: Places, ends: Places, apart: NDArray[np.bool_], heads: Ints, held: NDArray[np.bool_], unit: Unit
) -> NDArray[np.bool_]:
    """Which tokens begin a unit. ``apart``: shares no character with a token before it; ``held``: must stay."""
    kinds, points = kinds_of(text)
    inside = (starts > 0) & (starts < len(text)) & (ends > starts) & apart
    places = np.minimum(starts, len(text) - 1)
    safe = inside & (kinds[places] != JOINING) & (points[places - 1] != ZERO_WIDTH_JOINER)
    begins: NDArray[np.bool_] = safe if unit == "token" else safe & _word_edges(kinds)[places]
    # Around what must stay, too: else a quotation mark of JSON would hold the word beside it. But never in a word.
    whole = (kinds[places - 1] == WORD) & (kinds[places] == WORD)
    begins = begins | (safe & np.diff(held, prepend=held[:1]) & ~whole)
    begins[heads] = True
    if (long := _overlong(begins)).any():
        begins |= long & safe & (kinds[places - 1] == PUNCT) & (kinds[places] == WORD)
        begins |= _every(begins, safe | begins) & _overlong(begins)
        begins |= _every(begins, inside | begins) & _overlong(begins, 2 * MAX_TOKENS)
    return begins


def _word_edges(kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether a word-like unit may begin at each character."""
    kinds = np.concatenate([np.array([SPACE], np.uint8), kinds])  # a text begins as if white space stood before it
    before, kinds = last_kept(kinds, kinds != JOINING)[:-1], kinds[1:]
    to_space = (kinds == SPACE) & (before != SPACE)
    alone = (before != SPACE) & ((kinds == SINGLE) | (before == SINGLE))
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
    chosen[fresh[np.diff(group[fresh], prepend=-1) != 0]] = True
    return chosen
