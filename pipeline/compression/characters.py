"""Kinds of characters: which of them belong together in a word, in any script."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPACE, WORD, PUNCT, SINGLE, JOINING, REGIONAL = 1, 2, 3, 4, 5, 6
"""Kinds: white space; letters and digits of spaced scripts; punctuation; characters that stand alone (scripts without
spaces, symbols, emoji); characters that belong to the one before them (marks, joiners, modifiers); flag letters."""

ZERO_WIDTH_JOINER = 0x200D

UNSPACED = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x312F), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Scripts written without spaces between words: Thai to Tibetan, Myanmar, Khmer, Han, Kana, Bopomofo."""

UNSPACED_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
"""These scripts as they are written in a class of a regular expression."""

_JOINED_LETTERS = (0x0E33, 0x0EB3, *range(0x1160, 0x1200), *range(0xD7B0, 0xD800))
"""Letters that only go with the one before them: Thai and Lao am, vowels and finals of decomposed Hangul."""

_kinds = np.zeros(0x110000, dtype=np.uint8)  # filled as characters are met: 0 is "not met yet"


def points_of(text: str) -> NDArray[np.uint32]:
    """The code point of every character of ``text``."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def kinds_of(text: str) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """The kind and the code point of every character of ``text``."""
    points = points_of(text)
    kinds = _kinds[points]
    if not kinds.all():
        for point in np.unique(points[kinds == 0]).tolist():
            _kinds[point] = _kind(point)
        kinds = _kinds[points]
    return kinds, points


def decimals(points: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which of these code points are decimal digits, of any script."""
    different, which = np.unique(points, return_inverse=True)
    known = np.array([chr(point).isdecimal() for point in different.tolist()], dtype=bool)
    found: NDArray[np.bool_] = known[which.reshape(points.shape)]
    return found


def last_kept(values: NDArray[Any], wanted: NDArray[np.bool_]) -> NDArray[Any]:
    """For every place the value at the nearest wanted place at or before it; 0 where there is none."""
    found, gaps = values.copy(), np.flatnonzero(~wanted)  # seldom many
    fresh = np.flatnonzero(np.diff(gaps, prepend=-2) != 1)
    before = gaps[fresh] - 1
    found[gaps] = np.repeat(np.where(before < 0, 0, values[before]), np.diff(fresh, append=len(gaps)))
    return found


def _kind(point: int) -> int:
    char = chr(point)
    category = unicodedata.category(char)
    if char.isspace():
        return SPACE
    if 0x1F1E6 <= point <= 0x1F1FF:
        return REGIONAL
    if category in ("Mn", "Mc", "Me", "Cf") or 0x1F3FB <= point <= 0x1F3FF or point in _JOINED_LETTERS:
        return JOINING
    if category[0] in "LN":
        unspaced = any(first <= point <= last for first, last in UNSPACED)
        return SINGLE if unspaced else WORD
    if category == "So":
        return SINGLE
    return WORD if char == "_" else PUNCT
