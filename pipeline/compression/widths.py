"""Where tokens stand in a text, by their lengths alone: to ask the library costs as much Python as all else together.

Laid end to end, the tokens of some tokenizers are the text, letter by letter. What a letter is depends on the
tokenizer: a byte of a byte-level one, a character that is no white space of BERT's. So the letters of the tokens before
one say where it begins.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import points_of
from pipeline.compression.selection import running_sums

Ints = NDArray[np.int64]
Spans = NDArray[np.int32]
"""Characters (from, to): half the memory of the usual integers, and no text has two thousand million."""

Letters = NDArray[np.uint8]
ODD = 255
"""For the letters of a character: how many they are depends on more than the character, or is not known."""

_NEW = 254  # for the letters of a character that was not met yet

NEVER = 2**32
"""The width of a token that stands for who knows what: no text has as many letters."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's tokens: ``ids[n]`` and ``spans[n, 2]``, the characters each one names (from, to)."""

    ids: Ints
    spans: Spans


def parted(values: NDArray[Any], sizes: Ints) -> list[NDArray[Any]]:
    """``values`` in runs of these lengths: ``np.split`` takes microseconds for each."""
    return [values[begin:end] for begin, end in pairwise([0, *np.cumsum(sizes).tolist()])]


def ids_of(encodings: list[Any]) -> tuple[Ints, Ints]:
    """All their ids, end to end, and how many each has."""
    sizes = np.array([len(one) for one in encodings], np.int64)
    return np.fromiter(chain.from_iterable(one.ids for one in encodings), np.int64, int(sizes.sum())), sizes


@dataclass(frozen=True, slots=True)
class Widths:
    """``of[id]``: letters that a token stands for. ``letters``: how many each of some characters has."""

    of: Ints
    letters: Callable[[NDArray[np.uint32]], Letters]

    def tokenised(self, inner: Any, texts: list[str]) -> dict[int, Tokens]:
        """The tokens of those texts that come out letter by letter, by place (none may have been trimmed or added)."""
        lengths = np.array([len(text) for text in texts], np.int64)
        heads, letters = np.cumsum(lengths) - lengths, self.letters(points_of("".join(texts)))
        odd = np.searchsorted(heads, np.flatnonzero(letters == ODD), side="right") - 1
        if len(odd):
            plain = np.setdiff1d(np.arange(len(texts)), odd).tolist()
            found = self.tokenised(inner, [texts[place] for place in plain]) if plain else {}
            return {plain[place]: tokens for place, tokens in found.items()}
        ids, sizes = ids_of(inner.encode_batch_fast(texts, add_special_tokens=False))
        total, widths = np.append(0, np.cumsum(letters, dtype=np.int64)), self.of[ids]
        rows = np.repeat(np.arange(len(sizes)), sizes)
        whole = np.bincount(rows, widths, len(texts)) == total[heads + lengths] - total[heads]
        ends = running_sums(widths, rows) + total[heads[rows]]
        spans = _named(letters, ends - widths, ends) - heads[rows, None].astype(np.int32)
        named = zip(parted(ids, sizes), parted(spans, sizes), strict=True)
        return {place: Tokens(*one) for place, one in enumerate(named) if whole[place]}


def _named(letters: Letters, begins: Ints, ends: Ints) -> Spans:
    """Letters from, to -> characters from, to; what lies outside (the text did not come out) is anything."""
    owners = np.append(np.repeat(np.arange(len(letters), dtype=np.int32), letters), np.int32(len(letters)))
    first, last = (owners[np.clip(place, 0, len(owners) - 1)] for place in (begins, ends - 1))
    return np.stack([first, last + np.int32(1)], 1)


def widths_of(inner: Any) -> Widths | None:
    """The widths of a tokenizer's tokens; None for tokenizers of which they do not say where a token stands."""
    if type(inner.decoder).__name__ == "ByteLevel" and inner.normalizer is None:
        added = {number: len(token.content.encode()) for number, token in inner.get_added_tokens_decoder().items()}
        return Widths(_widths(inner, added, ""), _bytes)  # one character of the byte-level alphabet is one byte
    kinds = [type(one).__name__ for one in (inner.model, inner.normalizer, inner.pre_tokenizer)]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        return None
    odd = dict.fromkeys([*inner.get_added_tokens_decoder(), inner.token_to_id(inner.model.unk_token)], NEVER)
    return Widths(_widths(inner, odd, inner.model.continuing_subword_prefix), _Solid(inner))


def _widths(inner: Any, known: dict[int, int], inside: str) -> Ints:
    """Characters of every token, without what marks it as the ``inside`` of a word, but for what is ``known``."""
    vocabulary = inner.get_vocab(with_added_tokens=True)
    widths = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
    for token, number in vocabulary.items():
        widths[number] = known.get(number, len(token) - len(inside) * bool(inside and token.startswith(inside)))
    return widths


def _bytes(points: NDArray[np.uint32]) -> Letters:
    """Bytes of each character in UTF-8."""
    more = [(points >= least).view(np.uint8) for least in (0x80, 0x800, 0x10000)]
    return 1 + more[0] + more[1] + more[2]


class _Solid:
    """Whether a character is more than white space to BERT's normaliser, filled as characters are met.

    Odd: what it makes nothing or several characters of (control characters, lone accents, Korean), and what the
    vocabulary lacks.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._known = np.full(0x110000, _NEW, np.uint8)

    def __call__(self, points: NDArray[np.uint32]) -> Letters:
        new = points[self._known[points] == _NEW]
        for point in np.unique(new).tolist():
            self._known[point] = self._letters(chr(point))
        return self._known[points]

    def _letters(self, char: str) -> int:
        said: str = self._inner.normalizer.normalize_str(char)
        if said and said.isspace():
            return 0
        solid = said.strip()
        known = len(solid) == 1 and self._inner.token_to_id(solid) is not None
        return 1 if known and not unicodedata.combining(char) else ODD
