"""What the tokens of a vocabulary stand for, and which of two vocabularies stand for the same."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_ALPHABET = {character: byte for byte, character in bytes_to_unicode().items()}
"""What stands for a byte in byte-level vocabularies."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""A byte in vocabularies of pieces."""


def shared(drafter: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """The target's tokens for which the drafter has one of the same text -> that one; a text's beginning and end go by
    what they are for. Empty where no vocabulary says what its tokens stand for."""
    own = texts_of(drafter)
    found = {number: own[text] for text, number in texts_of(target).items() if text in own}
    for role in ("bos_token_id", "eos_token_id"):
        number, its = getattr(target, role), getattr(drafter, role)
        if found and number is not None and its is not None:
            found.setdefault(number, its)
    return found


def texts_of(tokenizer: PreTrainedTokenizerFast) -> dict[bytes, int]:
    """What tokens stand for, and which does, where the vocabulary says so: byte-level ones, and those of pieces with
    "▁". Of several for one text it is the one that is written: an added token, else a piece, a byte where there is
    none."""
    inner = tokenizer.backend_tokenizer
    added = {number: token.content for number, token in inner.get_added_tokens_decoder().items()}
    bytewise = type(inner.decoder).__name__ == "ByteLevel"
    if not bytewise and not any(token.startswith("▁") for token in inner.get_vocab(with_added_tokens=False)):
        return {}
    found: dict[bytes, int] = {}
    every = inner.get_vocab(with_added_tokens=True).items()  # in no order: each process has another
    for token, number in sorted(every, key=lambda one: (one[1] not in added, bool(_BYTE.fullmatch(one[0])), one[1])):
        if text := added[number].encode() if number in added else _bytes(token) if bytewise else _piece(token):
            found.setdefault(text, number)
    return found


def _bytes(token: str) -> bytes:
    """Of a byte-level vocabulary, each character a byte."""
    return bytes(_ALPHABET[one] for one in token) if all(one in _ALPHABET for one in token) else b""


def _piece(token: str) -> bytes:
    """Of a vocabulary of pieces: "▁" is a space, "<0x0A>" a byte."""
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
