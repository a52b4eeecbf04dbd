"""Shards: gapless, bounded, and enough of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cutting import MAX_CHARACTERS, cut, most_documents


@given(st.lists(st.tuples(st.integers(0, MAX_CHARACTERS), st.floats(0, 200)), max_size=60), st.integers(1, 9))
def test_every_document_is_in_exactly_one_bounded_shard(sizes: list[tuple[int, float]], most: int) -> None:
    work = [(seq, characters, seconds) for seq, (characters, seconds) in enumerate(sizes)]
    ranges = list(cut(work, 60.0, most))
    assert [seq for start, stop in ranges for seq in range(start, stop)] == list(range(len(sizes)))
    for start, stop in ranges:
        assert 1 <= stop - start <= most
        if stop - start > 1:
            assert sum(characters for characters, _ in sizes[start:stop]) <= MAX_CHARACTERS
            assert sum(seconds for _, seconds in sizes[start:stop]) <= 60.0 + 1e-6


def test_gaps_left_by_refused_documents_may_lie_between_shards() -> None:
    assert list(cut([(3, 1, 40.0), (5, 1, 40.0), (9, 1, 1.0)], 60.0)) == [(3, 4), (5, 10)]


def test_a_small_corpus_still_feeds_every_worker() -> None:
    assert most_documents(24, 2) == 3
    assert most_documents(1, 8) == 1
    assert most_documents(10**6, 1) == 4096
