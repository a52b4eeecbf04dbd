"""Tokens of parts joined by blank lines, out of those of each part: what was tokenised need not be counted again."""

from __future__ import annotations

import json
from typing import Any

from pipeline.compression.bert import is_bert
from schemas.document import SEPARATOR

LONGEST = 8
"""Characters around a blank line, white space but for the first and last, for which it is remembered what it adds."""


MOST = 2**16
"""Joints that are remembered."""


class Joints:
    """What a blank line between two texts adds to the tokens that they have by themselves, where that is certain.

    BERT's tokenizer parts text at white space before all else, so nothing reaches across a blank line. What GPT-2's
    pattern makes of white space depends on it alone and on what follows: on whether that is a digit, which may be split
    off first, or a token of its own like ``<|im_end|>``. All before and after it comes out as it does without.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._known: dict[tuple[str, str], int] = {}
        added = inner.get_added_tokens_decoder().values()
        self._added = tuple(token.content for token in added)
        plain = not any(token.lstrip or token.rstrip or any(map(str.isspace, token.content)) for token in added)
        self._bert, self._gpt2 = plain and is_bert(inner), plain and _is_gpt2(inner)

    def between(self, left: str, right: str) -> int | None:
        """Tokens that the blank line adds; None where only counting the whole would say."""
        if self._bert:
            return 0
        before, after = left.rstrip(), right.lstrip()
        if not (self._gpt2 and before and after) or after.startswith(self._added):
            return None
        ends = left[len(before) - 1 :], right[: len(right) - len(after) + 1]
        if len(ends[0]) + len(ends[1]) > LONGEST:
            return None
        if len(known := self._known) > MOST:
            known = self._known = {}  # another thread may go on with the old ones
        if ends not in known:
            known[ends] = self._count(SEPARATOR.join(ends)) - self._count(ends[0]) - self._count(ends[1])
        return known[ends]

    def _count(self, text: str) -> int:
        return len(self._inner.encode(text, add_special_tokens=False))


def _is_gpt2(inner: Any) -> bool:
    """Byte-level BPE that splits text by GPT-2's pattern, and by digits before that or not."""
    made = json.loads(inner.to_str())
    first = made["pre_tokenizer"] or {"type": None}
    steps = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    if made["normalizer"] is not None or made["model"]["type"] != "BPE" or made["model"]["dropout"]:
        return False
    by_pattern = steps[-1]["type"] == "ByteLevel" and steps[-1]["use_regex"] and not steps[-1]["add_prefix_space"]
    return by_pattern and all(step["type"] == "Digits" for step in steps[:-1])
