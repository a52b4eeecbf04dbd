"""The question that stands before the contexts while their tokens are scored."""

from __future__ import annotations

import numpy as np

from pipeline.compression.reference.codec import Codec
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.windows import BETWEEN

BEGIN = 100
"""Tokens kept from the beginning of a question too long for the model's window."""

_SEEN = 100
"""Characters of the first context that are tokenised with the question."""


def fitted(codec: Codec, text: str, size: int, most: int) -> str:
    """``text`` without its middle, if two windows of ``size`` tokens would have no room beside it in ``most``."""
    (whole,) = codec.encode([text + BETWEEN], special=True)
    if len(whole) + 2 * size <= most:
        return text
    (ids,) = codec.encode([text])
    rest = ids[len(ids) - most + 2 + BEGIN + 2 * size :]
    return codec.decode(np.concatenate([ids[:BEGIN], rest]))


def tokens_of(codec: Codec, text: str, context: str) -> int:
    """How many tokens of question and context together are the question and the blank line after it.

    Raises ``Crash`` where no number of them decodes to that and the others to the context.
    """
    before, seen = text + BETWEEN, context[:_SEEN]
    alone, together = codec.encode([before, before + seen])
    found = None
    for count in range(max(len(alone) - 3, 1), len(together)):
        found = count
        if codec.decode(together[:count]) == before:
            break
    if found is None or codec.decode(together[found:]) != seen:
        raise Crash("the question does not survive being tokenised and decoded before the contexts")
    return found
