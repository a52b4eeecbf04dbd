"""What only a GPU shows: recording, kernels that are launched early, and pinned memory. All else is in
``test_packed_decoding``, ``test_engine`` and ``test_kernels``."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from pipeline.passes.built import built
from pipeline.passes.fused import Fused
from pipeline.passes.joined import join
from pipeline.passes.packed import Step
from pipeline.passes.recorded import RECORDERS
from pipeline.passes.transfers import together

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


@torch.inference_mode()
def test_kernels_that_come_early_say_what_they_say_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for those before it: else one replay in many would read what is not there yet."""
    from pipeline.passes.early import comes_early  # where there is no GPU there is no Triton

    device = torch.device("cuda", torch.cuda.current_device())
    if not comes_early(torch.empty(0, device=device)):
        pytest.skip("this GPU launches no kernel early")
    sizes: dict[str, Any] = {
        "vocab_size": 500, "hidden_size": 512, "intermediate_size": 4608, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    trunk: Any = AutoModel.from_config(AutoConfig.for_model("llama", **sizes)).to(device, torch.bfloat16).eval()
    for layer in trunk.layers:
        join(layer)
    made, rows, room = built(trunk), 3, 700
    layers = Fused(made) if made else None
    assert layers is not None
    stores = [torch.randn(rows * room, 2, 64, device=device).bfloat16() for _ in range(12)]
    first, stored = torch.arange(rows, device=device) * room, torch.tensor([600, 5, 321], device=device)
    arrived = torch.zeros(999, dtype=torch.int32, device=device)
    step = Step(first, stored, 1, arrived, stores[0::2], stores[1::2])
    ids = torch.tensor([7, 8, 9], device=device)
    with monkeypatch.context() as patch:
        for module in ("few", "products"):
            patch.setattr(f"pipeline.passes.{module}.comes_early", lambda like: False)
        expected = layers.read(ids, stored, step).clone()
    again, (found, _) = RECORDERS["cuda"](device)(lambda: (layers.read(ids, stored, step), ids))
    for _ in range(300):
        again()
        assert torch.equal(found, expected)


@torch.inference_mode()
def test_parts_arrive_end_to_end_wherever_they_lie() -> None:
    """From the host by way of pinned memory, which is used again while the last copy may be on its way."""
    device = torch.device("cuda", torch.cuda.current_device())
    found, right = [], []
    for number in range(20):
        one, other = torch.full((3, 5), float(number)), torch.randn(100_000, 5)
        for parts in ([one, other], [one.half(), other], [one.to(device), other], [other.to(device), one.to(device)]):
            right.append(torch.cat([part.float().cpu() for part in parts]))
            found.append(together(parts, device))
    for its, expected in zip(found, right, strict=True):  # only now is any of them waited for
        assert its.device == device and torch.equal(its.cpu(), expected)
