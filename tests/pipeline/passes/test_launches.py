"""A kernel is asked for its program once for all launches that are alike, and again where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.passes.launches import Launches


class Kernel:
    """As Triton's: a launch says which program it was, and a program takes the kernel's arguments in their order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Program]:
        def launch(*arguments: Any, num_warps: int) -> Program:
            self.asked.append((grid, num_warps, arguments))
            return Program(self)

        return launch


class Program:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return lambda *arguments: self.kernel.launched.append((grid, arguments))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_launches_that_are_alike_share_a_program(kernel: Kernel) -> None:
    launch, one, two = Launches(kernel), torch.zeros(64), torch.zeros(64)
    launch((3, 1), (one, two), (64, 1e-5), free=(7,), warps=2)
    launch((5, 2), (two, one), (64, 1e-5), free=(9,), warps=2)
    assert kernel.asked == [((3, 1), 2, (one, two, 7, 64, 1e-5))]
    assert kernel.launched == [((5, 2, 1), (two, one, 9, 64, 1e-5))]


@pytest.mark.parametrize(
    ("tensors", "fixed", "warps"),
    [
        ((torch.zeros(64), torch.zeros(64)), (65, 1e-5), 2),
        ((torch.zeros(64), torch.zeros(64)), (64, 1e-6), 2),
        ((torch.zeros(64), torch.zeros(64)), (64, 1e-5), 4),
        ((torch.zeros(64), torch.zeros(64).half()), (64, 1e-5), 2),
        ((torch.zeros(64), torch.zeros(65)[1:]), (64, 1e-5), 2),
    ],
    ids=["number", "small number", "warps", "type", "address"],
)
def test_others_ask_for_their_own(
    kernel: Kernel, tensors: tuple[torch.Tensor, ...], fixed: tuple[Any, ...], warps: int
) -> None:
    launch = Launches(kernel)
    for _ in range(2):
        launch((1, 1), (torch.zeros(64), torch.zeros(64)), (64, 1e-5), warps=2)
        launch((1, 1), tensors, fixed, warps=warps)
    assert [len(kernel.asked), len(kernel.launched)] == [2, 2]
