"""Where memory tokens stand, and what each slot is for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory.spans import reading
from schemas.memory import slots_of


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"), [(128, 4.0, 32), (130, 4.0, 33), (1, 4.0, 1), (3, 8.0, 1), (7, 1.0, 7)]
)
def test_nothing_grows(tokens: int, ratio: float, expected: int) -> None:
    assert slots_of(tokens, ratio) == expected


@given(st.integers(1, 4096), st.integers(10, 640))
def test_slots_are_those_of_the_ratio_as_it_is_written(tokens: int, tenths: int) -> None:
    """42 / 1.4 is a little over 30, as floats go."""
    assert slots_of(tokens, tenths / 10) == max(1, math.ceil(Fraction(10 * tokens, tenths)))


@given(st.integers(1, 1024), st.data())
def test_slots_are_those_of_a_ratio_that_was_reckoned_from_them(tokens: int, data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, tokens))
    assert slots_of(tokens, tokens / slots) == slots


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
