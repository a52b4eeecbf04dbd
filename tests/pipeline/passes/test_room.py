"""Columns are never two rows' at once, and what is given back can be taken again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.passes.room import Room


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60))
def test_nothing_overlaps_and_nothing_is_lost(calls: list[tuple[bool, int]]) -> None:
    room = Room(30)
    taken: list[tuple[int, int]] = []
    for take, size in calls:
        if take and (begin := room.take(size)) is not None:
            assert begin >= 0 and begin + size <= 30
            assert all(begin + size <= other or begin >= other + width for other, width in taken)
            taken.append((begin, size))
        elif taken and not take:
            room.give(*taken.pop(size % len(taken)))
        assert room.free == 30 - sum(width for _, width in taken)
    for one in taken:
        room.give(*one)
    assert room.take(30) == 0


def test_the_first_gap_that_is_wide_enough() -> None:
    room = Room(10)
    assert [room.take(size) for size in (3, 2, 4, 2)] == [0, 3, 5, None]
    room.give(0, 3)
    room.give(5, 4)
    assert [room.take(size) for size in (4, 3)] == [5, 0]
