"""The tokenizer as the library sees it: whole texts in, ids out, and text decoded back from ids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_CLEAN = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
          (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip
"""What transformers replaces in decoded text, in this order, unless a tokenizer says otherwise."""


class Codec:
    """One tokenizer without padding or truncation.

    A text is tokenised as a whole, and decoded text is cleaned up where ``clean_up``: the library's output is decoded
    text, so this decides bytes.
    """

    def __init__(self, tokenizer: Any, clean_up: bool = True) -> None:
        # A copy: a call elsewhere with padding or truncation leaves these switched on in the shared one.
        self._inner = copy.deepcopy(tokenizer.backend_tokenizer)
        self._inner.no_padding()
        self._inner.no_truncation()
        self._clean_up = clean_up
        self.special = self._inner.num_special_tokens_to_add(False)
        """Tokens that the tokenizer puts around a text when it is asked to."""

    def encode(self, texts: Sequence[str], special: bool = False) -> list[Ints]:
        """The ids of each text; with ``special``, with what the tokenizer adds around a text."""
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=special)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Ints) -> str:
        """The text of ``ids``, special tokens included."""
        text: str = self._inner.decode(ids.tolist(), skip_special_tokens=False)
        return self._cleaned(text)

    def decode_many(self, rows: Sequence[Ints]) -> list[str]:
        """``decode`` of each."""
        texts = self._inner.decode_batch([ids.tolist() for ids in rows], skip_special_tokens=False)
        return [self._cleaned(text) for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters each token of ``text`` names."""
        offsets: list[tuple[int, int]] = self._inner.encode(text, add_special_tokens=False).offsets
        return offsets

    def _cleaned(self, text: str) -> str:
        if self._clean_up:
            for found, put in _CLEAN:
                text = text.replace(found, put)
        return text


class Ids:
    """The ids of texts, each tokenised once however often it is asked for."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._known: dict[tuple[str, bool], Ints] = {}

    def of(self, texts: Sequence[str], special: bool = False) -> list[Ints]:
        """The ids of each text; with ``special``, with what the tokenizer adds around a text."""
        special = special and self._codec.special > 0
        new = [text for text in dict.fromkeys(texts) if (text, special) not in self._known]
        encoded = self._codec.encode(new, special)
        self._known.update(((text, special), ids) for text, ids in zip(new, encoded, strict=True))
        return [self._known[text, special] for text in texts]

    def of_each(self, groups: Sequence[Sequence[str]], special: bool = False) -> list[list[Ints]]:
        """``of`` for the texts of each group, all in one go."""
        found = iter(self.of([text for group in groups for text in group], special))
        return [list(islice(found, len(group))) for group in groups]
