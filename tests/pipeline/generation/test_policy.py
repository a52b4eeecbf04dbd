"""Copies that do not pay are left alone soon, and those that do are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.generation import costs
from pipeline.generation.costs import WIDTHS, Costs, measured
from pipeline.generation.policy import Policy, Way
from pipeline.generation.rounds import Model
from schemas.stage import GenerateSpec

FLAT = [1.0, 1.01, 1.03, 1.08, 1.2]  # a GPU that waits for its memory
STEEP = [1.0, 1.6, 2.5, 4.5, 9.0]  # a CPU


def policy_of(by_width: list[float]) -> Policy:
    return Policy(lambda rows, way: by_width[WIDTHS.index(way.width)])


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
        seconds += by_width[WIDTHS.index(width)]
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
            seconds += {1: 10, 2: 10, 3: 30}.get(used[size, width], FLAT[WIDTHS.index(width)])
            accepted = np.cumprod(random.random((count, width - 1)) < chance, 1).sum(1)
            policy.saw(Way(0, width), *row_of(accepted, width))
            left[on] -= 1 + accepted
        found.append(seconds)
    return found


def best(by_width: list[float], chance: float) -> float:
    """The fastest width's, with these chances throughout."""
    return max(sum(chance**place for place in range(width)) / by_width[WIDTHS.index(width)] for width in WIDTHS)


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


CASCADES = [Way(rounds, rounds + 1) for rounds in (1, 3, 7)]


@pytest.mark.parametrize("drafter", [0.05, 0.3, 1.2])
@pytest.mark.parametrize("chances", [(0.0, 0.0), (0.0, 0.9), (0.6, 0.7), (0.9, 0.5)])
def test_drafters_are_used_where_they_pay(chances: tuple[float, float], drafter: float) -> None:
    """With copies and drafts of a drafter that pass with these chances."""
    random = np.random.default_rng(0)
    policy = Policy(lambda rows, way: 1 + 0.01 * way.width + way.rounds * drafter, CASCADES)
    tokens, seconds, current = 0.0, 0.0, True
    for place in range(4000):
        way = policy.way(4, 4000 - place, lambda way: True, current)
        seconds += 10 * (way.rounds > 0 and not current) + 1 + 0.01 * way.width + way.rounds * drafter
        current = way.rounds > 0
        accepted = np.cumprod(random.random((4, way.width - 1)) < chances[current], 1).sum(1)
        policy.saw(way, *row_of(accepted, way.width))
        tokens += 1 + accepted.mean()
    ways = [*CASCADES, *(Way(0, width) for width in WIDTHS)]
    expected = [
        sum(chances[way.rounds > 0] ** one for one in range(way.width)) / (1 + 0.01 * way.width + way.rounds * drafter)
        for way in ways
    ]
    assert tokens / seconds >= 0.97 / 1.01
    assert tokens / seconds >= 0.85 * max(expected)


def test_costs_between_and_beyond_what_was_measured() -> None:
    seconds = np.full((3, len(WIDTHS)), np.nan)
    seconds[0], seconds[1, :2] = [1, 1, 1, 1, 2], [2, 3]
    found = Costs(seconds)
    assert found.of(1) == [1, 1, 1, 1, 2]
    assert found.of(8) == [2, 3, 6, 12, 24]  # as the tokens do
    assert found.of(64)[:2] == [16, 32]
    assert found.of(128)[:2] == [32, 64]
    assert np.all(np.diff(found.of(5)) >= 0) and 1 < found.of(5)[0] < 2


class _Slow:
    """Passes that fail from so many tokens on."""

    records = False

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
