"""Edges of words and phrases: at which characters of a text a unit may begin. Array work over the whole text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import JOINING, PUNCT, REGIONAL, SINGLE, SPACE, WORD, last_kept
from pipeline.compression.sentences import conjunctions, sentence_ends

_OPENERS = '([{«“‘"–—•'
_CLOSERS = ',;:.!?…)]}»”"–—，、。；：！？）」』】》،؛؟।'

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def word_edges(kinds: NDArray[np.uint8]) -> Bools:
    """Whether a word-like unit may begin at each character: never at a letter or a digit, which without what stands
    before them would run into other ones."""
    kinds = np.concatenate([np.array([SPACE], np.uint8), kinds])  # a text begins as if white space stood before it
    before, kinds = last_kept(kinds, kinds != JOINING)[:-1], kinds[1:]
    to_space = (kinds == SPACE) & (before != SPACE)
    alone = (before != SPACE) & ((kinds == SINGLE) | (before == SINGLE))
    flags = (kinds == REGIONAL) ^ (before == REGIONAL)
    # What follows a run of punctuation: only a run before white space or the end trails its word.
    after = last_kept(kinds[::-1], (kinds != PUNCT)[::-1])[::-1]
    trailing = (kinds == PUNCT) & (before == WORD) & ((after == SPACE) | (after == 0))
    edges: Bools = to_space | alone | (flags & (before != SPACE)) | trailing
    edges &= (kinds != JOINING) & (kinds != WORD)
    return edges


def phrase_edges(text: str, points: NDArray[np.uint32], words: Bools, solid: Ints) -> Bools:
    """The word edges (``words``) after closing punctuation or a line break, before openers and conjunctions.

    ``points``: the text's characters; ``solid`` as ``next_solid`` gives it.
    """
    count = len(points)
    places = np.flatnonzero(words)
    ahead = np.minimum(solid[places], count - 1)
    opened = np.zeros(count, dtype=bool)
    opened[np.fromiter(conjunctions(text), np.int64)] = True
    opened |= np.isin(points, [ord(char) for char in _OPENERS])
    closed = np.isin(points, [ord(char) for char in _CLOSERS])
    breaks = np.append(0, np.cumsum(points == 10))
    broken = breaks[np.minimum(solid[places], count)] > breaks[places]
    # A closing mark ends the phrase before it: what stands between it and a word is no edge.
    begins = (closed[places - 1] | opened[ahead] | broken) & ~(closed[ahead] & (~opened[ahead] | (ahead == places)))
    edges = np.zeros(count, dtype=bool)
    edges[places[begins]] = True
    return edges


def sentence_edges(text: str) -> Bools:
    """Whether a sentence may begin at each character, or at the white space there."""
    ends = np.zeros(len(text) + 1, dtype=bool)
    ends[np.fromiter(sentence_ends(text), np.int64)] = True
    return ends[:-1]


def next_solid(kinds: NDArray[np.uint8]) -> Ints:
    """For every character the place of the first at or after it that is no white space; the end where there is none."""
    count = len(kinds)
    found = np.where(kinds == SPACE, count, np.arange(count))
    return np.minimum.accumulate(found[::-1])[::-1]
