"""Checkpoints as they lie on a disk: which are gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoints import Checkpoint, Checkpoints


def test_whichever_bit_is_flipped_the_one_before_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {"weight.a": torch.arange(6, dtype=torch.bfloat16).view(2, 3), "step.a": torch.tensor(2.0)}
    checkpoints = Checkpoints(str(tmp_path), "0f3a")
    for step in (1, 2):
        checkpoints.save(Checkpoint(step, step / 4, tensors))
    _, last = sorted(tmp_path.iterdir())
    whole, taken = last.read_bytes(), set()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        last.write_bytes(damaged)
        caplog.clear()
        found = checkpoints.latest()
        assert found and all(torch.equal(one, tensors[name]) for name, one in found.tensors.items())
        assert (found.step, found.seconds, str(last) in caplog.text) in {(1, 0.25, True), (2, 0.5, False)}
        taken.add((found.step, whole[bit // 8 : bit // 8 + 1] == b" "))
    assert taken <= {(1, False), (1, True), (2, True)}, "only padding says the same with a bit flipped"


def test_what_could_not_be_used_takes_no_later_ones_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an earlier release, of another training, and damaged: all of them further than what is written now."""
    tensors = {"weight.a": torch.zeros(2)}
    save_file(tensors, tmp_path / "step-00002000.safetensors", {"key": "0f3a", "step": "2000", "seconds": "1.0"})
    Checkpoints(str(tmp_path), "another").save(Checkpoint(1900, 1.0, tensors))
    (tmp_path / "step-00000200.safetensors").write_bytes(b"cut short")
    checkpoints = Checkpoints(str(tmp_path), "0f3a")
    assert checkpoints.latest() is None and "it is of an earlier release" in caplog.text
    for step in (100, 200, 300):
        checkpoints.save(Checkpoint(step, 1.0, tensors))
        found = checkpoints.latest()
        assert found and found.step == step
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-00000{step}.safetensors" for step in (200, 300)]
