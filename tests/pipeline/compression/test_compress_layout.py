"""Which characters are kept: cells, blank lines, other orders, and places in a source with markup."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compression.layout import Layout, in_source, stripped, text_of
from schemas.document import SEPARATOR

PARTS = ("one two", "three", "four five six")
TEXT = SEPARATOR.join(PARTS)
LAYOUT = Layout.of([np.array([0, 3]), np.array([0]), np.array([0, 4, 9])], [len(part) for part in PARTS])


@pytest.mark.parametrize(
    ("kept", "order", "text"),
    [
        ("111111", None, TEXT),
        ("101001", None, "one\n\nthree\n\n six"),
        ("000110", None, "four five"),
        ("000000", None, ""),
        ("010001", None, " two\n\n six"),
        ("111111", (2, 0, 1), "four five six\n\none two\n\nthree"),
        ("101011", (1, 2, 0), "three\n\n five six\n\none"),
        ("100100", (2, 1, 0), "four\n\none"),
    ],
)
def test_kept_units_and_the_blank_lines_between_their_parts(
    kept: str, order: tuple[int, ...] | None, text: str
) -> None:
    mask = np.array([flag == "1" for flag in kept])
    assert text_of(TEXT, LAYOUT.spans(mask, order)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6), st.data())
def test_places_in_a_source_are_those_of_its_text_once_the_markup_is_out(
    tags: list[tuple[int, int]], data: st.DataObject
) -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(60))
    markup = sorted(dict(tags).items())
    source, done = "", 0
    for place, size in markup:
        source, done = source + text[done:place] + "#" * size, place
    source += text[done:]
    edges = sorted(data.draw(st.sets(st.integers(0, 60), max_size=8)))
    spans = np.array(edges[: len(edges) // 2 * 2], dtype=np.int64).reshape(-1, 2)
    found = in_source(spans, np.array(markup, dtype=np.int64).reshape(-1, 2))
    assert text_of(source, found) == text_of(text, spans)


def test_white_space_at_the_ends_is_left_out() -> None:
    spans = np.array([[0, 3], [5, 7], [8, 12]])
    assert text_of("  .\n\n x     ", stripped("  .\n\n x     ", spans)) == ". x"
