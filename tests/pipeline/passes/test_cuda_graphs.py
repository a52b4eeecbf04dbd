"""Recording on a GPU itself; what needs none of it is in ``test_packed_decoding`` and ``test_engine``."""

from __future__ import annotations

import gc

import pytest
import torch

from pipeline.passes.recorded import RECORDERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def test_recordings_come_and_go_also_where_one_fails() -> None:
    """torch forgets a pool of memory with the last graph that is in it, and a failed capture stops halfway."""
    device = torch.device("cuda", torch.cuda.current_device())
    record, given = RECORDERS["cuda"](device), torch.ones(2, 3, device=device)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return given + 1, given * 3

    def waits() -> tuple[torch.Tensor, torch.Tensor]:
        return given + given.sum().item(), given

    for number in range(3):
        again, (more, times) = record(run)
        given.fill_(number)
        again()
        assert more.tolist() == [[number + 1] * 3] * 2 and times.tolist() == [[3 * number] * 3] * 2
        with pytest.raises(RuntimeError):
            record(waits)
        del again, more, times
        gc.collect()
    assert torch.rand(3, device=device).shape == (3,)
