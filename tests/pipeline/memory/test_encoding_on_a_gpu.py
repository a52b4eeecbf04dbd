"""Where there is a GPU: spans are read wide there, by kernels that no interpreter stands in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoding_jobs import DOCUMENTS, encoder_of, stage

from pipeline.memory.packing import unpack
from pipeline.memory.resident import resident
from pipeline.models import ModelPool
from pipeline.stages import Result, Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

KINDS: dict[str, dict[str, Any]] = {
    "interleaved": {},
    "appended": {"layout": "appended", "slots": 8, "targets": ["q_proj", "v_proj"]},
    "pooled": {"layout": "pooled"},
    "odd": {"rank": 5},
    "whole": {"rank": 0},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_those_of_the_cpu(
    kind: str, dtype: str, tiny_model: Path, pool: ModelPool, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, gpu = encoder_of(tiny_model, kind, **KINDS[kind]), ModelPool("cuda")
    made = stage(tiny_model, encoder, dtype=dtype, batch_tokens=300)
    coder = resident(*made.found(), str(tiny_model), dtype, "auto", gpu).coder
    assert coder.wide is not None and not caplog.records
    on_cpu = stage(tiny_model, encoder)
    for found, expected in zip(made.run(DOCUMENTS, Run(gpu)), on_cpu.run(DOCUMENTS, Run(pool)), strict=True):
        assert isinstance(found, Result) and isinstance(expected, Result) and found.slots and expected.slots
        assert found.fields["context_slots"] == expected.fields["context_slots"]
        off = (unpack(found.slots) - unpack(expected.slots)).norm() / unpack(expected.slots).norm()
        assert off < 0.1, off
    gpu.close()
