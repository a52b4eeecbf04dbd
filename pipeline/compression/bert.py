"""BERT's way with text before it is cut into word pieces: which tokenizers have it, and the same by a table."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import points_of

Letters = NDArray[np.uint8]
Points = NDArray[np.uint32]

_NEW, _ODD = 2**32 - 1, 2**32 - 2  # no characters: not met yet, and odd


def is_bert(inner: Any) -> bool:
    """Whether this is BERT's WordPiece, with BERT's way to normalise and to part text."""
    kinds = [type(one).__name__ for one in (inner.model, inner.normalizer, inner.pre_tokenizer)]
    return kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"] and bool(inner.normalizer.clean_text)


def solid(points: Points) -> Letters:
    """BERT's normaliser leaves no other white space than spaces."""
    found: Letters = (points != ord(" ")).view(np.uint8)
    return found


class Normalised:
    """BERT's normaliser by a table, filled as characters are met: the library takes as long for it as for all else.

    None for texts with characters of which it makes nothing or several (control characters, accents, Chinese), which
    the vocabulary lacks, and with tokens like [SEP], which it leaves alone.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._added = [token.content for token in inner.get_added_tokens_decoder().values()]
        self._table = np.full(0x110000, _NEW, np.uint32)

    def __call__(self, texts: list[str]) -> list[str | None]:
        """Each text as the normaliser leaves it, character for character."""
        joined, ends = "".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64)
        points = points_of(joined)
        for point in np.unique(points[self._table[points] == _NEW]).tolist():
            self._table[point] = self._one(chr(point))
        said = self._table[points]
        odd = set(np.searchsorted(ends, np.flatnonzero(said == _ODD), side="right").tolist())
        whole = np.where(said == _ODD, np.uint32(ord(" ")), said).tobytes().decode("utf-32-le")
        own = [whole[end - len(text) : end] for text, end in zip(texts, ends.tolist(), strict=True)]
        added = [one for one in self._added if one in joined or one in whole]
        return [
            None if place in odd or any(one in text or one in mine for one in added) else mine
            for place, (text, mine) in enumerate(zip(texts, own, strict=True))
        ]

    def _one(self, char: str) -> int:
        said: str = self._inner.normalizer.normalize_str(char)
        if said and said.isspace():
            return ord(" ")
        known = len(said) == 1 and self._inner.token_to_id(said) is not None
        return ord(said) if known and not unicodedata.combining(char) else _ODD
