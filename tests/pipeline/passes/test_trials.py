"""Kernels of our own are tried out once, against what others say: memory that is short for a moment decides nothing."""

from __future__ import annotations

import pytest
import torch

from pipeline import batching
from pipeline.passes.packable import doubt


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_kept_for_speed_is_let_go_for_it(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another model's store of keys and values, which may take most of the memory."""
    held = [kept]

    def let_go() -> bool:
        was, held[0] = held[0], False
        return was

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        if held[0] or not kept:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(2), torch.ones(2)

    monkeypatch.setattr(batching, "RELIEF", [let_go])
    assert doubt(read) == ("" if kept else "CUDA out of memory")


def test_what_is_off_is_said() -> None:
    assert doubt(lambda: (torch.ones(2), torch.ones(2))) == ""
    assert doubt(lambda: (torch.full((2,), 1.5), torch.ones(2))) == "it is 0.50 off"
