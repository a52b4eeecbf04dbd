"""Lanes that call compiled code while others make torch compile anew, which is a matter of the whole process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event

import pytest
import torch

from pipeline.passes.compiling import hasten
from pipeline.passes.heads import nats

ROUNDS = 12


class _Layer(torch.nn.Linear):
    def forward(self, hidden: torch.Tensor, kind: str = "") -> torch.Tensor:
        """Every ``kind`` takes a program of its own."""
        return super().forward(hidden).sin() + len(kind)


class _Trunk(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.traced = False
        self.layers = torch.nn.ModuleList(_Layer(8, 8) for _ in range(4))

    def forward(self, hidden: torch.Tensor, kind: str = "") -> torch.Tensor:
        """All layers, one after the other. What makes masks between them asks whether it is traced."""
        for layer in self.layers:
            self.traced |= torch.compiler.is_compiling() or torch.fx._symbolic_trace._is_fx_tracing_flag
            hidden = layer(hidden, kind=kind)
        return hidden


def test_one_lane_compiles_anew_while_the_other_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    trunk, states = _Trunk().requires_grad_(False), torch.randn(9, 8)
    head = torch.nn.Linear(8, 50).requires_grad_(False)
    expected = trunk(states)
    assert hasten(trunk, list(trunk.layers), lambda: trunk(states))
    both, compiled = Barrier(2), Event()

    def reading() -> list[torch.Tensor]:
        both.wait()
        found = []
        while not compiled.is_set():
            found.append(trunk(states))
            nats(head, found[-1], torch.arange(9))  # without a lock of its own
        return found

    def compiling() -> None:
        both.wait()
        try:
            for number in range(ROUNDS):
                trunk(states, kind=f"{number:02d}")
        finally:
            compiled.set()

    with ThreadPoolExecutor(2) as lanes:
        found, done = lanes.submit(reading), lanes.submit(compiling)
        done.result()
        assert not trunk.traced
        for hidden in found.result():
            torch.testing.assert_close(hidden, expected)
