"""The parts of the reference's token filter, against plain Python."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compression.reference.contexts import choose, ranked, reordered
from pipeline.compression.reference.decisions import compact, sliced, thresholds
from pipeline.compression.reference.windows import plain_windows
from schemas.reference import ReferenceOptions


@given(st.integers(-20, 20), st.integers(0, 12))
def test_bounds_are_those_of_pythons_slices(bound: int, length: int) -> None:
    found = int(sliced(torch.tensor([bound]), torch.tensor([length]))[0])
    assert (list(range(length))[:bound], list(range(length))[bound:]) == (
        list(range(length))[:found],
        list(range(length))[found:],
    )


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_what_stays_moves_up_in_order(masks: list[list[bool]]) -> None:
    values = torch.arange(6.0).repeat(len(masks), 1) + 1
    moved, counts = compact(values, torch.tensor(masks))
    for row, mask in enumerate(masks):
        kept = [place + 1.0 for place, stays in enumerate(mask) if stays]
        assert int(counts[row]) == len(kept)
        assert moved[row].tolist() == kept + [0.0] * (6 - len(kept))


@given(st.lists(st.floats(0, 20, width=32), max_size=9), st.sampled_from([0.0, 0.05, 0.25, 0.33, 0.5, 0.9, 1.0]))
def test_a_threshold_is_the_last_value_that_the_share_reaches(losses: list[float], ratio: float) -> None:
    width = 10
    values = torch.tensor([losses + [99.0] * (width - len(losses))])
    valid = torch.arange(width) < len(losses)
    found, empty = thresholds(values, valid[None], torch.tensor([ratio], dtype=torch.float64))
    assert bool(empty[0]) == (not losses and ratio != 1)
    if ratio == 1:
        assert float(found[0]) == float("-inf")
    elif losses:
        place = max(0, min(len(losses) - 1, int(len(losses) * ratio) - 1))
        assert float(found[0]) == sorted(losses, reverse=True)[place]


@given(st.lists(st.integers(0, 700), min_size=1, max_size=6), st.integers(2, 200), st.integers(-50, 900))
def test_windows_cover_what_was_counted(lengths: list[int], size: int, target: int) -> None:
    plan = plain_windows(lengths, target, size, [0.0] * len(lengths))
    sums = [sum(count for count, _ in window) for window in plan]
    assert sum(sums) == sum(lengths) + 2 * len(lengths)
    assert sums[0] == min(size - 1, sum(sums))
    assert all(count == size for count in sums[1:-1])
    assert {ratio for window in plan for _, ratio in window} == {
        float(max(min(1, target / (sum(lengths) + 2 * len(lengths) + 1)), 0))
    }


def test_scores_without_a_number_are_sorted_as_python_sorts_them() -> None:
    rnd = random.Random(0)
    for _ in range(50):
        scores = [rnd.choice([float("nan"), rnd.random()]) for _ in range(8)]
        expected = [place for place, _ in sorted(enumerate(scores), key=lambda one: -one[1])]
        assert ranked(scores, "none") == expected


@pytest.mark.parametrize(
    ("order", "expected"), [("original", [0, 1, 2, 3, 4]), ("sort", [3, 0, 4, 1, 2]), ("two_stage", [3, 4, 2, 1, 0])]
)
def test_orders(order: str, expected: list[int]) -> None:
    assert reordered([3, 0, 4, 1, 2], order) == expected  # type: ignore[arg-type]


def test_the_context_that_crosses_the_limit_stays_and_the_first_rank_is_compressed_least() -> None:
    options = ReferenceOptions(
        context_budget="+0", rank_method="longllmlingua", dynamic_context_compression_ratio=0.3, reorder_context="sort"
    )
    choice = choose([3.0, 1.0, 2.0, 4.0], [10, 10, 10, 10], 15, options)
    assert choice.used == (1, 2)
    assert choice.shifts == (0.3, -0.3)


def test_forced_contexts_come_first_and_cost_nothing() -> None:
    options = ReferenceOptions(context_budget="+0", force_context_ids=(3,), reorder_context="sort")
    assert choose([3.0, 1.0, 2.0, 0.0], [10, 10, 10, 10], 15, options).used == (3, 0, 2)
