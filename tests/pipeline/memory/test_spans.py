"""Where memory tokens stand, and what each slot is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory.spans import reading, slots_of


@pytest.mark.parametrize(
    ("tokens", "ratio", "most", "expected"),
    [
        (128, 4.0, None, 32),
        (130, 4.0, None, 33),
        (1, 4.0, None, 1),
        (3, 8.0, None, 1),
        (512, 4.0, 100, 100),
        (7, 1.0, 9, 7),
    ],
)
def test_nothing_grows(tokens: int, ratio: float, most: int | None, expected: int) -> None:
    assert slots_of(tokens, ratio, most) == expected


def test_memory_tokens_stand_behind_what_they_are_for() -> None:
    found = reading(5, 2, "interleaved")
    assert found.order.tolist() == [0, 1, 5, 2, 3, 4, 6] and found.places.tolist() == [2, 6]
    found = reading(5, 2, "appended")
    assert found.order.tolist() == [0, 1, 2, 3, 4, 5, 6] and found.places.tolist() == [5, 6]
    found = reading(5, 2, "pooled")
    assert found.order.tolist() == [0, 1, 2, 3, 4] and found.ends.tolist() == [2, 5]


@given(st.integers(1, 300), st.data(), st.sampled_from(["interleaved", "appended", "pooled"]))
def test_every_token_is_read_once_and_shared_out_evenly(tokens: int, data: st.DataObject, layout: str) -> None:
    slots = data.draw(st.integers(1, tokens))
    found = reading(tokens, slots, layout)
    assert [one for one in found.order.tolist() if one < tokens] == list(range(tokens))
    sizes = np.diff(found.ends, prepend=0)
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1 and found.ends[-1] == tokens
    if layout != "pooled":
        assert found.order[found.places].tolist() == list(range(tokens, tokens + slots))


def test_more_slots_than_tokens_are_refused() -> None:
    for slots in (0, 4):
        with pytest.raises(ValueError, match="3 tokens cannot be read into"):
            reading(3, slots, "interleaved")
