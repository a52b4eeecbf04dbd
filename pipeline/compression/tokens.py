"""Text -> token ids with their places in the text, and exact token counts."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.compression.joints import Joints
from pipeline.compression.widths import Ints, Tokens, Widths, ids_of, parted, widths_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECE = 2**17
"""Characters of a long text tokenised at once."""

GROUP = 2**19
"""Bytes of text given to the tokenizer at once: its own records take some 500 bytes a token."""


@functools.lru_cache(maxsize=4)
def _own(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A copy of the inner tokenizer: a call elsewhere with padding or truncation leaves these switched on in it."""
    inner = copy.deepcopy(tokenizer.backend_tokenizer)
    inner.no_padding()
    inner.no_truncation()
    return inner


@functools.lru_cache(maxsize=4)
def _widths(tokenizer: PreTrainedTokenizerFast) -> Widths | None:
    return widths_of(_own(tokenizer))


@functools.lru_cache(maxsize=4)
def _joints(tokenizer: PreTrainedTokenizerFast) -> Joints:
    return Joints(_own(tokenizer))


def _by_offsets(inner: Any, texts: list[str]) -> list[Tokens]:
    """The tokens of texts, at the places that the tokenizer itself names."""
    encodings = inner.encode_batch(texts, add_special_tokens=False)
    ids, sizes = ids_of(encodings)
    ends = chain.from_iterable(chain.from_iterable(one.offsets for one in encodings))
    spans = np.fromiter(ends, np.int32, 2 * len(ids)).reshape(-1, 2)
    return [Tokens(*one) for one in zip(parted(ids, sizes), parted(spans, sizes), strict=True)]


@dataclass(frozen=True, slots=True)
class Tokenising:
    """One tokenizer, without special tokens added, padding or truncation. Safe to use from several threads.

    ``PIECE``-sized cuts of a long text make ``tokenise`` deterministic but not equal to tokenising it at once (by a
    token at a cut); ``count`` is always that of the whole text.
    """

    tokenizer: PreTrainedTokenizerFast

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids and places of every text; a text in which the tokenizer finds nothing has no tokens."""
        pieces = [list(_pieces(text)) for text in texts]
        made = iter(self._encode([piece for some in pieces for _, piece in some]))
        return [_joined([_moved(next(made), start) for start, _ in some]) for some in pieces]

    def scored(self, tokens: Tokens) -> Tokens:
        """What is scored of a text that has these tokens: just them."""
        return tokens

    @staticmethod
    def at_once(text: str) -> bool:
        """Whether the text is tokenised in one piece, so that it counts as many tokens as it has."""
        return len(text) <= PIECE

    def joined(self, texts: Sequence[str], counts: Sequence[int]) -> int | None:
        """Tokens of texts (none empty) joined by blank lines, each of so many tokens; None: count it to know."""
        joints = _joints(self.tokenizer)
        between = [joints.between(left, right) for left, right in pairwise(texts)]
        return None if None in between else sum(counts) + sum(filter(None, between))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text."""
        counts: list[int] = []
        for group in _groups(texts):
            some = [texts[place] for place in group]
            short = [text for text in some if len(text) <= 2 * PIECE]
            counted = iter(self._count_batch(short) if short else [])
            counts += [next(counted) if len(text) <= 2 * PIECE else self._count_long(text) for text in some]
        return counts

    def _count_batch(self, texts: list[str]) -> list[int]:
        widths = _widths(self.tokenizer)
        counts = {place: len(one) for place, (_, one) in widths.encoded(texts).items()} if widths else {}
        rest = [place for place in range(len(texts)) if place not in counts]
        encodings = _own(self.tokenizer).encode_batch_fast([texts[place] for place in rest], add_special_tokens=False)
        counts |= {place: len(one) for place, one in zip(rest, encodings, strict=True)}
        return [counts[place] for place in range(len(texts))]

    def _count_long(self, text: str) -> int:
        """The tokens of a text of megabytes, piece by piece where that is sure to give the same, for memory's sake.

        A piece ends after a word where the tokenizer, started there, gives the very tokens that it gives for the rest
        of the piece: what stands before does not matter then. Where no such place is found (one endless word; a
        tokenizer that marks the start of a text) the text is counted at once.
        """
        total = start = 0
        while len(text) - start > 2 * PIECE:
            piece = text[start : start + PIECE]
            (tokens,) = self.tokenise([piece])
            begins = tokens.spans[:, 0]
            for cut in _word_ends(piece, len(piece) * 7 // 8):
                number = int(np.searchsorted(begins, cut))
                if begins[number : number + 1] == cut and self._begins(piece[cut:], tokens.ids[number:]):
                    break
            else:
                return self._count_batch([text])[0]
            total, start = total + number, start + cut
        return total + self._count_batch([text[start:]])[0]

    def _begins(self, text: str, ids: Ints) -> bool:
        """Whether the text by itself has these tokens."""
        return np.array_equal(self.tokenise([text])[0].ids, ids)

    def start_id(self) -> int:
        """The token a text is scored after when nothing else stands before it: BOS, else EOS, else a line break."""
        for known in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if known is not None:
                return int(known)
        tokens = self.tokenise(["\n"])[0].ids
        return int(tokens[-1]) if len(tokens) else 0

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of every text, each tokenised at once."""
        widths = _widths(self.tokenizer)
        found: list[Tokens] = []
        for group in _groups(texts):
            some = [texts[place] for place in group]
            made = widths.tokenised(some) if widths else {}
            if rest := [number for number in range(len(some)) if number not in made]:
                named = _by_offsets(_own(self.tokenizer), [some[number] for number in rest])
                made.update(zip(rest, named, strict=True))
            found += [made[number] for number in range(len(some))]
        return found


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Cuts of at most ``PIECE`` characters, made before white space where there is some in the second half."""
    start = 0
    while len(text) - start > PIECE:
        half = start + PIECE // 2
        cut = max(text.rfind("\n", half, start + PIECE), text.rfind(" ", half, start + PIECE))
        end = cut if cut > 0 else start + PIECE
        yield start, text[start:end]
        start = end
    if start < len(text):
        yield start, text[start:]


def _word_ends(text: str, before: int) -> Iterator[int]:
    """Places before ``before``, the last first: where white space follows something else, then where words end.

    Text of megabytes without white space is common (JSON, Chinese); without the end of a word it is not.
    """
    first = max(0, before - 4096)
    for pattern in (r"\S(?=\s)", r"[^\W\d_](?=[\W\d_])"):
        found = [one.end() for one in re.finditer(pattern, text[first:before])]
        yield from (first + place for place in found[:-33:-1])


def _groups(texts: Sequence[str]) -> Iterator[range]:
    """Consecutive places of texts of ``GROUP`` bytes together (or one that is longer)."""
    first, total = 0, 0
    for place, text in enumerate(texts):
        size = len(text.encode())
        if place > first and total + size > GROUP:
            yield range(first, place)
            first, total = place, 0
        total += size
    if first < len(texts):
        yield range(first, len(texts))


def _moved(tokens: Tokens, by: int) -> Tokens:
    return Tokens(tokens.ids, tokens.spans + np.int32(by)) if by else tokens


def _joined(parts: Sequence[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Tokens(np.zeros(0, np.int64), np.zeros((0, 2), np.int32))
    return Tokens(np.concatenate([part.ids for part in parts]), np.concatenate([part.spans for part in parts]))
