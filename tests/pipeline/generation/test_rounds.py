"""What a round takes besides the passes of its models: every launch of a kernel counts, and nothing waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.generation.engine import way_of
from pipeline.generation.lines import Lines
from pipeline.generation.rounds import Model, cascade
from pipeline.generation.sampling import Choosing
from schemas.drafting import Plan
from schemas.stage import GenerateSpec

ROUNDS = {
    "plain": (Plan(), 12, 6),
    "copies": (Plan(copied=7), 34, 7),
    "a drafter": (Plan(rounds=(4,)), 64, 36),
    "a drafter over copies": (Plan(copied=3, rounds=(2,)), 96, 29),
    "the same, and a tail": (Plan(copied=3, rounds=(2,), tail=4), 117, 32),
    "a cascade": (Plan(copied=3, rounds=(2, 2)), 209, 70),
}
"""Launches of torch's kernels alone, and with our own."""

WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "lift_fresh", "_to_copy"}


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is neither a view of what is there nor only room."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted, self._on = Counter[str](), True

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = operator._schema
        views = any(one.alias_info and not one.alias_info.is_write for one in schema.returns)
        nothing = isinstance(args[0], torch.Tensor) and not args[0].numel()
        if self._on and not (views or nothing or "empty" in schema.name):
            self.counted[schema.name.removeprefix("aten::")] += 1
        return operator(*args, **(kwargs or {}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A model's own work."""
        self._on = False
        yield
        self._on = True


class Passes:
    """Hidden states by chance."""

    def __init__(self, launches: Launches) -> None:
        self._launches = launches

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        with self._launches.paused():
            return torch.randn(ids.numel(), 64)


class Kernel:
    """Counted, and not run: what it makes is any place of a line."""

    def __init__(self, launches: Launches) -> None:
        self._launches = launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self._launches.counted["ours"] += 1
            if isinstance(args[-1], torch.Tensor):
                with self._launches.paused():
                    args[-1].fill_(60)

        return launch


@torch.inference_mode()
def counted(plan: Plan, ours: bool, sampled: bool = False) -> Counter[str]:
    launches, choose = Launches(), Choosing(GenerateSpec(kind="generate", temperature=float(sampled)))
    lines = Lines(4, 200, 30, torch.device("cpu"), False, (64, 8))
    texts = [np.arange(9)] * 4
    lines.begin(np.arange(4), range(4), [np.zeros(0, np.int64)] * 4, texts, np.zeros(4, np.int64))
    lines.length[:4] += 1
    passes: Any = Passes(launches)
    target, *drafters = (Model(passes, torch.nn.Identity(), 64) for _ in range(1 + len(plan.rounds)))
    rounds, slots = cascade(target, drafters, plan, choose), torch.arange(4)
    rounds.round(lines, slots, way_of(plan).width, 0)  # makes what is made once
    lines.launches = ours
    with launches:
        rounds.round(lines, slots, way_of(plan).width, 0)
    return launches.counted


@pytest.mark.parametrize(("plan", "launches", "_"), ROUNDS.values(), ids=ROUNDS)
def test_a_round_is_so_many_launches_besides_its_passes(plan: Plan, launches: int, _: int) -> None:
    found = counted(plan, ours=False)
    assert found.total() == launches, found
    assert not WAITING.intersection(found)


@pytest.mark.parametrize(("plan", "_", "launches"), ROUNDS.values(), ids=ROUNDS)
def test_kernels_of_our_own_take_the_place_of_most(
    plan: Plan, _: int, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    from pipeline.generation import matching, settling

    told: list[Launches] = []
    begin = Launches.__init__

    def noted(self: Launches) -> None:
        begin(self)
        told.append(self)
        for module, kernel in ((matching, "_copy_on"), (settling, "_settle"), (settling, "_write")):
            monkeypatch.setattr(module, kernel, Kernel(self))

    monkeypatch.setattr(Launches, "__init__", noted)
    found = counted(plan, ours=True)
    assert found.total() == launches, found
    assert not WAITING.intersection(found)


@pytest.mark.parametrize(("plan", "_", "__"), ROUNDS.values(), ids=ROUNDS)
def test_draws_wait_for_nothing_either(plan: Plan, _: int, __: int) -> None:
    found = counted(plan, ours=False, sampled=True)
    assert found["cumsum"] and not WAITING.difference({"_to_copy"}).intersection(found)  # _to_copy: in double precision
