"""Copies that do not pay are left alone soon, and those that do are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.generation import costs
from pipeline.generation.costs import WIDTHS, Costs, measured
from pipeline.generation.policy import COPYING, Policy, Way
from pipeline.generation.rounds import Model
from pipeline.passes.padded import PaddedPasses
from schemas.stage import GenerateSpec

FLAT = [1.0, 1.01, 1.03, 1.08, 1.2]  # a GPU that waits for its memory
STEEP = [1.0, 1.6, 2.5, 4.5, 9.0]  # a CPU


def policy_of(by_width: list[float]) -> Policy:
    return Policy(lambda rows, way: by_width[COPYING.index(way.width)])


def row_of(accepted: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What was drafted, and accepted."""
    return np.full(len(accepted), width - 1), accepted


def played(by_width: list[float], chances: list[float], rows: int) -> tuple[float, list[int]]:
    """Tokens a second over plain decoding's, when in each round drafts pass with that chance; and the widths."""
    random, policy = np.random.default_rng(0), policy_of(by_width)
    tokens, seconds, widths = 0.0, 0.0, []
    for place, chance in enumerate(chances):
        width = policy.way(rows, len(chances) - place, lambda way: True).width
        accepted = np.cumprod(random.random((rows, width - 1)) < chance, 1).sum(1)
        policy.saw(Way(0, width), *row_of(accepted, width))
        widths.append(width)
        tokens += 1 + accepted.mean()
        seconds += by_width[COPYING.index(width)]
    return tokens / seconds, widths


def batches(chance: float, rows: int, length: int, number: int, drafts: bool) -> list[float]:
    """Seconds of batches, one after another, whose rows end one by one. Each number of rows, a power of two, and width
    is recorded at its third round, which takes as long as 30; those before take as long as 10."""
    lengths, random, policy = np.random.default_rng(2), np.random.default_rng(1), policy_of(FLAT)
    used: dict[tuple[int, int], int] = {}
    found = []
    for _ in range(number):
        left, seconds = lengths.integers(length // 2, length * 3 // 2, rows).astype(float), 0.0
        while (on := left > 0).any():
            count = int(on.sum())
            size = 1 << max(1, count - 1).bit_length()
            ready = lambda way: used.get((size, way.width), 0) > 2  # noqa: B023, E731
            width = policy.way(count, left[on].mean(), ready).width if drafts else 1
            used[size, width] = used.get((size, width), 0) + 1
            seconds += {1: 10, 2: 10, 3: 30}.get(used[size, width], FLAT[COPYING.index(width)])
            accepted = np.cumprod(random.random((count, width - 1)) < chance, 1).sum(1)
            policy.saw(Way(0, width), *row_of(accepted, width))
            left[on] -= 1 + accepted
        found.append(seconds)
    return found


def best(by_width: list[float], chance: float) -> float:
    """The fastest width's, with these chances throughout."""
    return max(sum(chance**place for place in range(width)) / by_width[COPYING.index(width)] for width in COPYING)


@pytest.mark.parametrize("by_width", [FLAT, STEEP])
@pytest.mark.parametrize("rows", [1, 8, 256])
@pytest.mark.parametrize("chance", [0.0, 0.02, 0.3, 0.7, 0.95])
def test_nothing_is_lost_and_most_is_won(by_width: list[float], chance: float, rows: int) -> None:
    found, _ = played(by_width, [chance] * 2000, rows)
    assert found >= 0.97
    assert found >= 0.85 * best(by_width, chance)


@pytest.mark.parametrize("rows", [1, 24, 128])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.9])
def test_short_batches_lose_little_to_recordings(chance: float, rows: int) -> None:
    plain, ours = (batches(chance, rows, 150, 12, drafts) for drafts in (False, True))
    assert sum(plain) / sum(ours) >= 0.95  # what is recorded once included
    assert sum(plain[6:]) / sum(ours[6:]) >= 0.97
    assert chance < 0.9 or sum(plain[6:]) / sum(ours[6:]) > 2


def test_what_changes_is_noticed() -> None:
    _, widths = played(FLAT, [0.0] * 600 + [0.95] * 600, 4)
    assert np.mean(widths[300:600]) < 4 and np.mean(widths[900:]) > 12
    _, widths = played(STEEP, [0.95] * 600 + [0.0] * 600, 4)
    assert np.mean(widths[300:600]) > 2 and np.mean(widths[900:]) < 1.1


def test_a_width_is_not_recorded_for_a_few_rounds() -> None:
    policy = policy_of(FLAT)
    for _ in range(20):
        policy.saw(Way(0, 16), *row_of(np.full(4, 15), 16))
    assert policy.way(4, 30, lambda way: way.width == 1).width == 1
    assert policy.way(4, 30, lambda way: True).width == 16
    assert policy.way(4, 500, lambda way: way.width == 1).width == 16


def drafted(
    policy: Policy, chances: Callable[[int, bool], float], drafter: float, under: int, tail: int, number: int
) -> tuple[float, list[Way]]:
    """Tokens a second over plain decoding's, and the ways; ``chances(place, by drafter)`` of drafts to pass. A round of
    the drafter takes ``drafter`` of a pass and gives a draft and half of ``under`` copies on average."""
    random, tokens, seconds = np.random.default_rng(0), 0.0, 0.0
    ways: list[Way] = []
    current = True
    for place in range(number):
        way = policy.way(4, number - place, lambda way: True, 0 if current else 1000)
        seconds += (way.rounds > 0 and not current) * 10 + 1 + 0.01 * way.width + way.rounds * drafter
        current = way.rounds > 0
        there = np.full(4, way.width - 1)
        if way.rounds:
            there = way.rounds + random.integers(0, way.rounds * under + 1, 4) + tail
        passes = random.random((4, way.width - 1)) < chances(place, current)
        accepted = np.cumprod(passes & (np.arange(way.width - 1) < there[:, None]), 1).sum(1)
        policy.saw(way, there, accepted)
        tokens += 1 + float(accepted.mean())
        ways.append(way)
    return tokens / seconds * 1.01, ways


def policy_over(drafter: float, under: int, tail: int) -> Policy:
    """As ``drafted`` has it."""
    cascades = [Way(rounds, 1 + rounds * (under + 1) + tail) for rounds in (1, 2, 4, 8)]
    return Policy(
        lambda rows, way: 1 + 0.01 * way.width + way.rounds * drafter, cascades, tail, lambda tokens: tokens / 100
    )


@pytest.mark.parametrize("drafter", [0.05, 0.3, 0.75, 1.2])
@pytest.mark.parametrize("chances", [(0.0, 0.0), (0.0, 0.9), (0.6, 0.7), (0.9, 0.5)])
@pytest.mark.parametrize(("under", "tail"), [(0, 0), (3, 0), (3, 4)])
def test_drafters_are_used_where_they_pay(chances: tuple[float, float], drafter: float, under: int, tail: int) -> None:
    """With copies and drafts of a drafter that pass with these chances."""
    policy = policy_over(drafter, under, tail)
    found, _ = drafted(policy, lambda _, current: chances[current], drafter, under, tail, 3000)
    best = 1.0
    for way in [*policy._cascades, *(Way(0, width) for width in COPYING)]:
        chance, drafts = chances[way.rounds > 0], way.width - 1
        if way.rounds:
            drafts = way.rounds + way.rounds * under // 2 + tail
        gain = sum(chance**one for one in range(drafts + 1)) * 1.01
        best = max(best, gain / (1 + 0.01 * way.width + way.rounds * drafter))
    assert found >= 0.97
    assert found >= 0.8 * best


def test_a_drafter_that_was_left_is_tried_again() -> None:
    policy = policy_over(0.1, 3, 0)
    _, ways = drafted(policy, lambda place, current: 0.9 * current * (place > 300), 0.1, 3, 0, 9000)
    assert not any(way.rounds for way in ways[100:300])
    assert sum(way.rounds > 0 for way in ways[-1000:]) > 900


def test_what_drafters_would_have_to_read_counts() -> None:
    policy = policy_over(0.1, 3, 0)
    for _ in range(9):
        policy.saw(Way(0, 16), *row_of(np.zeros(4, np.int64), 16))  # copies do not pass
    assert policy.way(4, 30, lambda way: True, 100).rounds
    assert not policy.way(4, 30, lambda way: True, 10_000).rounds


def test_costs_between_and_beyond_what_was_measured() -> None:
    seconds = np.full((6, len(WIDTHS)), np.nan)
    seconds[0], seconds[1, :2], seconds[2:4, 0] = [1, 1, 1, 1, 2, 2], [2, 3], [2, 2]
    found = Costs(seconds)
    assert found.of(1) == [1, 1, 1, 1, 2, 2]
    assert found.of(2) == [2, 3, 6, 12, 24, 48]  # as the tokens do
    assert found.of(8)[0] == 2 and found.of(64)[0] == 16 and found.of(128)[0] == 32
    assert np.all(np.diff(found.of(5)) >= 0) and 4 < found.of(24)[0] < 8
    assert [found.at(1, width) for width in (1, 9, 16, 33, 64)] == [1, 2, 2, 2 * 33 / 32, 4]
    recorded = Costs(seconds, recorded=True)
    assert recorded.of(1) == recorded.of(2) == found.of(2) and recorded.of(5) == found.of(8)
    assert found.reading(2048) == found.of(64)[-1]


class _Slow(PaddedPasses):
    """Passes that fail from so many tokens on."""

    def __init__(self, most: int, told: list[int]) -> None:
        self.most, self.told = most, told

    def reserve(self, columns: int, longest: int) -> None:
        assert columns % longest == 0

    def place(self, rows: Any, begins: NDArray[np.int64]) -> None:
        assert len(rows) == len(begins)

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        self.told.append(ids.numel())
        if ids.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(ids.numel(), 4)


def test_what_does_not_fit_is_reckoned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    head = nn.Linear(4, 7)
    looks: list[int] = []
    found = measured(lambda rows: Model(_Slow(60, told), head, 7), False, lambda: looks.append(1))
    assert max(told) == 64 and told == sorted(told) and len(looks) > 5
    beyond = found.of(1000)
    assert np.isfinite(beyond).all() and np.all(np.diff(beyond) >= 0) and beyond[-1] > beyond[0]
    with pytest.raises(torch.OutOfMemoryError):
        measured(lambda rows: Model(_Slow(0, told), head, 7), False, lambda: None)
    monkeypatch.setattr(costs, "_SECONDS", 0.0)
    told.clear()
    measured(lambda rows: Model(_Slow(60, told), head, 7), False, lambda: None)
    assert set(told) == {1}


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "openai", "draft_tokens": "auto"},
        {"draft_tokens": "many"},
    ],
)
def test_what_cannot_be_chosen_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="draft"):
        GenerateSpec(kind="generate", **settings)
