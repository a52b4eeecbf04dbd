"""Rows of a recorded step, beside what whole engines show of it (``test_packed_decoding``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.passes import recorded


def test_steps_of_compiled_layers_have_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are compiled for; others take one row as it is."""
    told: dict[int, list[list[int]]] = {1: [], 2: []}
    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: lambda run: (run, run()))
    for least, seen in told.items():
        state = torch.zeros(5)

        def step(slots: torch.Tensor, width: int, most: int, seen: list[list[int]] = seen) -> recorded.Output:
            seen.append(slots.tolist())
            return slots[:, None].clone(), torch.ones(len(slots), 3)

        steps = recorded.Steps(recorded.Work(step, [state], 4, least), records=True, refused=set(), kind=0)
        for _ in range(4):
            steps(np.array([1]), 1, 9)
    assert {len(one) for one in told[1]} == {1} and {len(one) for one in told[2]} == {2}
