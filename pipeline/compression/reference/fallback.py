"""What a document gets where the library raises an exception: plain text within the budget, or valid JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.compression.reference.codec import Codec
from pipeline.compression.reference.windows import BETWEEN
from schemas.reference import JsonKey


def shortened(codec: Codec, instruction: str, contexts: Sequence[str], question: str, budget: int) -> str:
    """The parts joined by blank lines, of the contexts as much from their beginning as the budget leaves.

    The budget is over the whole text, in the scorer's tokens. Instruction and question stay whole, whatever they take.
    """
    text = BETWEEN.join(one for one in contexts if one)
    ends = [end for _, end in codec.offsets(text)]
    least, most = 0, len(ends)
    while least < most:  # the largest number of tokens that fits
        middle = (least + most + 1) // 2
        fits = _count(codec, _joined(instruction, text[: ends[middle - 1]], question)) <= budget
        least, most = (middle, most) if fits else (least, middle - 1)
    return _joined(instruction, text[: ends[least - 1]] if least else "", question)


def shortened_json(codec: Codec, text: str, keys: dict[str, JsonKey], budget: int) -> str:
    """The object with as many of its pairs as the budget leaves; those that may be dropped go first, the last first.

    What is no object comes back as the empty one.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = {}
    left: dict[str, Any] = value if isinstance(value, dict) else {}
    order = sorted(left, key=lambda name: name not in keys or keys[name].pair_remove)
    while order and _count(codec, _dumped(left)) > budget:
        gone = order.pop()
        left = {name: one for name, one in left.items() if name != gone}
    return _dumped(left)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _joined(*parts: str) -> str:
    return BETWEEN.join(part for part in parts if part.strip())


def _count(codec: Codec, text: str) -> int:
    (ids,) = codec.encode([text])
    return len(ids)
