"""Drafts that do not pay cost next to nothing, and those that do are found: rounds replayed on a made-up clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from replayed import CASCADES, CPU, FLAT, H200, Chance, Device, Luck, Worker, believed
from torch import nn

from pipeline.generation import costs
from pipeline.generation.costs import WIDTHS, Costs, measured
from pipeline.generation.paces import DOUBT, PLAIN, Paces, Way
from pipeline.generation.policy import COPYING, Ahead, Policy
from pipeline.generation.purse import SHARE, Purse
from pipeline.generation.rounds import Model
from pipeline.passes.padded import PaddedPasses
from schemas.stage import GenerateSpec

LUCK: dict[str, tuple[Chance, Chance]] = {
    "none": (lambda row, made: 0.0, lambda row, made: 0.0),
    "little": (lambda row, made: 0.12, lambda row, made: 0.3),
    "some": (lambda row, made: 0.5, lambda row, made: 0.85),
    "much": (lambda row, made: 0.9, lambda row, made: 0.95),
    "in parts": (lambda row, made: 0.97 if (made // 16 * 7 + row * 3) % 10 < 3 else 0.05, lambda row, made: 0.85),
    "but for one row": (lambda row, made: 0.9 if row % 8 else 0.05, lambda row, made: 0.9 if row % 8 else 0.3),
    "until it ends": (lambda row, made: 0.8 * (made < 50), lambda row, made: 0.8 * (made < 50)),
    "late": (lambda row, made: 0.8 * (made > 64), lambda row, made: 0.8 * (made > 64)),
}
"""The chances of copies, and of drafts of a drafter."""

RUNS = 4


def runs(worker: Worker, batches: Sequence[int], at_once: int, number: int = RUNS) -> list[float]:
    """Seconds of the same shard again and again: answers of 128 tokens."""
    return [sum(worker.answer([128] * many, at_once) for many in batches) for _ in range(number)]


def worker(device: Device, luck: str, patched: pytest.MonkeyPatch, **settings: Any) -> Worker:
    copies, drafter = LUCK[luck]
    return Worker(device, Luck(copies, drafter), patched, **settings)


def plain(device: Device, batches: Sequence[int], at_once: int, patched: pytest.MonkeyPatch) -> list[float]:
    return runs(worker(device, "none", patched, way=PLAIN), batches, at_once)


SHARDS = [([1] * 8, 1), ([8], 8), ([40], 8)]
"""Documents of each batch, and how many at once."""


@pytest.mark.parametrize(("batches", "at_once"), [*SHARDS, ([256], 256)])
@pytest.mark.parametrize("off", [1 / 1.3, 1.3])
@pytest.mark.parametrize("luck", LUCK)
def test_a_gpu_never_loses(
    luck: str, off: float, batches: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first round on, recordings included, wherever it may stop; with rounds that take a third more or less
    than the last, and a table that is as far off. Answers are short: a recording takes as long as a third of one."""
    told, number = believed(H200, off), 2 if at_once == 256 else RUNS
    some = worker(H200, luck, monkeypatch, cascades=CASCADES, told=told, noise=0.3)
    found = np.cumsum(runs(some, batches, at_once, number))
    without = np.cumsum(plain(H200, batches, at_once, monkeypatch)[:number])
    assert without[-1] / found[-1] >= 0.97
    assert np.all(without / found >= 0.96)


@pytest.mark.parametrize(("batches", "at_once"), SHARDS)
@pytest.mark.parametrize("luck", LUCK)
def test_nor_does_a_cpu(luck: str, batches: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pass of two tokens takes half as long again as one of one."""
    some = worker(CPU, luck, monkeypatch, cascades=CASCADES, told=believed(CPU, 1 / 1.3), noise=0.3)
    found = np.cumsum(runs(some, batches, at_once))
    without = np.cumsum(plain(CPU, batches, at_once, monkeypatch))
    assert np.all(without / found >= 0.96) and without[-1] / found[-1] >= 0.97


@pytest.mark.parametrize(("batches", "at_once"), [([1] * 8, 1), ([40], 8)])
@pytest.mark.parametrize("off", [1 / 1.3, 1.3])
@pytest.mark.parametrize("luck", ["some", "but for one row"])
@pytest.mark.parametrize("device", [H200, FLAT], ids=["H200", "flat"])
def test_most_is_won_where_drafts_pay(
    device: Device, luck: str, off: float, batches: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it knows: beside the best number of copies, always."""
    some = worker(device, luck, monkeypatch, told=believed(device, off), noise=0.1)
    found = min(runs(some, batches, at_once, 7))
    ways = [Way(0, width) for width in COPYING]
    best = min(runs(worker(device, luck, monkeypatch, way=way), batches, at_once, 2)[1] for way in ways)
    assert found <= 1.12 * best


def test_a_drafter_that_pays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: to read prompts and record two passes takes what may be lost in ten seconds and more."""
    device = replace(H200, drafter=0.15)
    some = Worker(device, Luck(lambda row, made: 0.1, lambda row, made: 0.9), monkeypatch, CASCADES)
    found = runs(some, [64], 8, 14)
    without = plain(device, [64], 8, monkeypatch)
    assert np.all(np.cumsum([*without, *[without[-1]] * (14 - RUNS)]) / np.cumsum(found) >= 0.97)
    assert without[-1] / found[-1] > 1.3


def test_what_drafters_would_have_to_read_counts() -> None:
    def wanted(missed: float) -> int:
        policy = Policy(H200.seconds, CASCADES, 0, H200.reading)
        for _ in range(4000):
            policy.saw(PLAIN, np.zeros(8, np.int64), np.zeros(8, np.int64), 1.0, 1e-3)
        return policy.way(Ahead(8, 60, 4000, missed), lambda way: True).rounds

    policy_drafts = [wanted(missed) for missed in (0, 100, 100_000)]
    assert policy_drafts[0] and policy_drafts[1] and not policy_drafts[2]


def test_recordings_must_be_worth_it() -> None:
    """Of what was left, and of what went by: later batches use them, too."""

    def wanted(left: float, gone: int, ready: bool = False) -> int:
        policy = Policy(H200.seconds)
        policy.recorded(PLAIN, 0.07)
        for _ in range(300):
            policy.saw(PLAIN, np.zeros(4, np.int64), np.zeros(4, np.int64), 1.0, 1.6e-3)
        policy.would([4] * 50)
        return policy.way(Ahead(4, left, gone), lambda way: ready or way == PLAIN).width

    assert wanted(100, 0) == 1 and wanted(100, 0, ready=True) > 1
    assert wanted(3000, 0) > 1 and wanted(100, 3000) > 1


def test_rows_that_lag_behind_count_where_none_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is done when its slowest row is: seven of eight that fly gain nothing on a GPU."""
    some = worker(H200, "but for one row", monkeypatch)
    runs(some, [8], 8, 40)
    share = some.policy._gained[0] / some.policy._gained[1]
    assert share < 0.35
    way = some.policy.way(Ahead(8, 128, 10**6, waiting=False), lambda way: True)
    assert way == PLAIN
    some.policy._stint = 0
    assert some.policy.way(Ahead(8, 128, 10**6, waiting=True), lambda way: True).width > 4


def test_a_table_is_believed_until_the_clock_says_otherwise() -> None:
    paces, wide = Paces(lambda rows, way: 1.0 * way.width), Way(0, 4)
    assert paces.of(8, wide) == 4.0 and paces.doubt(8, wide) == DOUBT
    for _ in range(60):
        paces.saw(8, PLAIN, 2.0)
    assert paces.of(8, PLAIN) == pytest.approx(2.0, rel=0.05) and paces.of(8, wide) == pytest.approx(8.0, rel=0.05)
    for _ in range(60):
        paces.saw(8, wide, 5.0)
    paces.saw(8, wide, 500.0)  # something else held it up
    assert paces.of(7, wide) == pytest.approx(5.0, rel=0.1) and paces.doubt(8, wide) < 0.05
    assert paces.of(9, wide) == pytest.approx(5.0, rel=0.15)  # other numbers of rows: likely as far off


def test_a_purse_holds_a_part_of_the_time() -> None:
    purse = Purse()
    assert purse.holds == 0
    for _ in range(100):
        purse.went(1.0, 1.0)
    assert purse.holds == pytest.approx(100 * SHARE, rel=0.05) and purse.lends
    purse.pay(5.0, lent=True)
    assert not purse.lends and purse.holds > 0
    for _ in range(4):
        purse.went(1.0, 2.0)
    assert not purse.lends and purse.won == 0
    for _ in range(4):
        purse.went(1.0, 2.0)
    assert purse.lends and purse.won > 2
    purse.pay(9.0, lent=False)
    assert purse.holds < 0 and not purse.lends


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
    assert recorded.of(1) == found.of(1) and recorded.of(3) == found.of(4) and recorded.of(5) == found.of(8)
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
