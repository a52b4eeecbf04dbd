from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import out_of_memory, pack, run_packed

LENGTHS = st.lists(st.integers(0, 50), max_size=60)


@given(LENGTHS, st.integers(1, 400))
def test_every_row_stands_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= budget
    assert [lengths[batch[0]] for batch in batches] == sorted((lengths[batch[0]] for batch in batches), reverse=True)


@given(LENGTHS, st.integers(1, 400))
def test_no_two_neighbouring_batches_would_fit_into_one(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    for left, right in itertools.pairwise(batches):
        assert lengths[left[0]] * (len(left) + 1) > budget, (left, right)


def test_rows_of_different_keys_never_share_a_batch() -> None:
    assert pack([5, 5, 5, 5], 100, keys=["a", "b", "a", "b"]) == [[0, 2], [1, 3]]


def test_a_batch_of_enough_tokens_leaves_much_padding_out() -> None:
    lengths = [50, 49, 30, 30]
    assert pack(lengths, 1000) == [[0, 1, 2, 3]]
    assert pack(lengths, 1000, enough=100) == [[0, 1], [2, 3]]
    assert pack([50, 49, 46, 30], 1000, enough=100) == [[0, 1, 2], [3]]  # a tenth of padding is borne


@given(LENGTHS, st.integers(1, 400))
def test_results_come_back_in_the_order_of_the_rows(lengths: list[int], budget: int) -> None:
    assert run_packed(lengths, budget, lambda rows: [(row, lengths[row]) for row in rows]) == list(enumerate(lengths))


def test_a_batch_out_of_memory_is_halved_and_so_is_every_later_one_as_large(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def work(rows: Sequence[int]) -> list[int]:
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [row * row for row in rows]

    with caplog.at_level(logging.WARNING):
        assert run_packed([10] * 16, 80, work) == [row * row for row in range(16)]
    assert tried == [8, 4, *[2] * 8]  # the second batch of eight is not even tried whole
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: a batch of 8 rows (80 tokens) is halved",
        "out of memory: a batch of 4 rows (40 tokens) is halved",
    ]


def test_a_single_row_that_does_not_fit_raises_what_the_allocator_said() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run_packed([10, 10], 100, lambda rows: [torch.empty(2**50) for _ in rows])


def test_other_errors_are_nobodys_business_here() -> None:
    calls: list[list[int]] = []

    def work(rows: list[int]) -> list[int]:
        calls.append(rows)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_packed([1, 1], 100, work)
    assert len(calls) == 1


def test_the_cpu_allocators_own_words_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"))
    assert not out_of_memory(RuntimeError("size mismatch"))
