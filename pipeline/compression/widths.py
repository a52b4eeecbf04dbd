"""Where tokens stand in a text, by their lengths alone: to ask the library costs as much Python as all else together.

Laid end to end, the tokens of some tokenizers are the text, letter by letter. What a letter is depends on the
tokenizer: a byte of a byte-level one, a character that is no white space of BERT's. So the letters of the tokens before
one say where it begins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.bert import Letters, Normalised, Points, is_bert, solid
from pipeline.compression.characters import points_of
from pipeline.compression.selection import running_sums

Ints = NDArray[np.int64]
Spans = NDArray[np.int32]
"""Characters (from, to): half the memory of the usual integers, and no text has two thousand million."""

Said = Callable[[list[str]], list[str | None]]

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


def ids_of(encodings: Sequence[Any]) -> tuple[Ints, Ints]:
    """All their ids, end to end, and how many each has."""
    sizes = np.array([len(one) for one in encodings], np.int64)
    return np.fromiter(chain.from_iterable(one.ids for one in encodings), np.int64, int(sizes.sum())), sizes


@dataclass(frozen=True, slots=True)
class Widths:
    """``of[id]``: letters that a token stands for. ``letters``: how many each of some characters has.

    ``said``: texts as ``inner`` is to get them, character for character; None for those that it does not read right.
    """

    inner: Any
    of: Ints
    letters: Callable[[Points], Letters]
    said: Said

    def encoded(self, texts: list[str]) -> dict[int, tuple[str, Any]]:
        """What is said of each text that is read right, and its tokens as the library has them, by place."""
        said = {place: text for place, text in enumerate(self.said(texts)) if text is not None}
        encodings = self.inner.encode_batch_fast(list(said.values()), add_special_tokens=False)
        return dict(zip(said, zip(said.values(), encodings, strict=True), strict=True))

    def tokenised(self, texts: list[str]) -> dict[int, Tokens]:
        """The tokens of those texts that come out letter by letter, by place (none may have been trimmed or added)."""
        if not (encoded := self.encoded(texts)):
            return {}
        said, encodings = zip(*encoded.values(), strict=True)
        letters, lengths = self.letters(points_of("".join(said))), np.array([len(text) for text in said])
        (ids, sizes), heads = ids_of(encodings), np.cumsum(lengths) - lengths
        total, widths = np.append(0, np.cumsum(letters, dtype=np.int64)), self.of[ids]
        rows = np.repeat(np.arange(len(sizes)), sizes)
        whole = np.bincount(rows, widths, len(sizes)) == total[heads + lengths] - total[heads]
        ends = running_sums(widths, rows) + total[heads[rows]]
        spans = _named(letters, ends - widths, ends) - heads[rows, None].astype(np.int32)
        named = zip(encoded, parted(ids, sizes), parted(spans, sizes), whole.tolist(), strict=True)
        return {place: Tokens(own, places) for place, own, places, right in named if right}


def _named(letters: Letters, begins: Ints, ends: Ints) -> Spans:
    """Letters from, to -> characters from, to; what lies outside (the text did not come out) is anything."""
    owners = np.append(np.repeat(np.arange(len(letters), dtype=np.int32), letters), np.int32(len(letters)))
    first, last = (owners[np.clip(place, 0, len(owners) - 1)] for place in (begins, ends - 1))
    return np.stack([first, last + np.int32(1)], 1)


def widths_of(inner: Any) -> Widths | None:
    """The widths of a tokenizer's tokens; None for tokenizers of which they do not say where a token stands."""
    added = inner.get_added_tokens_decoder()
    if type(inner.decoder).__name__ == "ByteLevel" and inner.normalizer is None:
        known = {
            number: NEVER if token.lstrip or token.rstrip else len(token.content.encode())  # it may take spaces along
            for number, token in added.items()
        }
        return Widths(inner, _widths(inner, known, ""), _bytes, list)  # a character of its alphabet is one byte
    if not is_bert(inner) or any(token.normalized for token in added.values()):
        return None
    odd = dict.fromkeys([*added, inner.token_to_id(inner.model.unk_token)], NEVER)
    bare = copy.deepcopy(inner)
    bare.normalizer = None
    return Widths(bare, _widths(inner, odd, inner.model.continuing_subword_prefix), solid, Normalised(inner))


def _widths(inner: Any, known: dict[int, int], inside: str) -> Ints:
    """Characters of every token, without what marks it as the ``inside`` of a word, but for what is ``known``."""
    vocabulary = inner.get_vocab(with_added_tokens=True)
    widths = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
    for token, number in vocabulary.items():
        widths[number] = known.get(number, len(token) - len(inside) * bool(inside and token.startswith(inside)))
    return widths


def _bytes(points: Points) -> Letters:
    """Bytes of each character in UTF-8."""
    more = [(points >= least).view(np.uint8) for least in (0x80, 0x800, 0x10000)]
    return 1 + more[0] + more[1] + more[2]
