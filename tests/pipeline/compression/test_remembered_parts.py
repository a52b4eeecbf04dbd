"""Parts that come again are kept, and nothing with them that they do not need."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from family_prompts import spec_of, tokenising

from pipeline.compression.marking import build_marking
from pipeline.compression.preparing import REMEMBERED, Preparing
from pipeline.compression.prompt import Part, Source
from schemas.document import PromptParts


def held(part: Part) -> int:
    """Bytes of the arrays that its own are views of."""
    arrays = [value for one in fields(part) if isinstance(value := getattr(part, one.name), np.ndarray)]
    return sum(array.nbytes if array.base is None else array.base.nbytes for array in arrays)


@pytest.mark.parametrize("length", [100, REMEMBERED // 100])
def test_what_is_remembered_of_a_batch_does_not_hold_all_of_it(length: int) -> None:
    spec = spec_of()
    preparing = Preparing(spec, tokenising(), tokenising(), build_marking(spec), same_tokenizer=True)
    long = ("the old cat sat on a mat " * length)[:length]
    preparing.prepare([Source(PromptParts("", (long, "a short one that may come again"), "why?"))])
    kept = {part.text: part for part in preparing.known.parts.values()}
    assert "a short one that may come again" in kept
    assert (long in kept) == (length <= REMEMBERED // 256)
    assert held(kept["a short one that may come again"]) < 20_000
