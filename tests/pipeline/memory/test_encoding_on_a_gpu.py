"""Where there is a GPU: spans are read wide there, by kernels that no interpreter stands in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoding_jobs import DOCUMENTS, encoder_of, stage

from pipeline.compression.tokens import Tokenising
from pipeline.memory.encoder import load_encoder
from pipeline.memory.packing import unpack
from pipeline.memory.resident import resident
from pipeline.memory.saying import nats
from pipeline.memory.spans import cut
from pipeline.models import ModelPool, load_tokenizer
from pipeline.stages import Result, Run
from schemas.memory import slots_of

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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_slots_are_fitted_in_half_precision(dtype: str, tiny_model: Path, pool: ModelPool) -> None:
    """And say their spans better, as the CPU reads them."""
    encoder, gpu = encoder_of(tiny_model, "interleaved"), ModelPool("cuda")
    coder, tokeniser = load_encoder(str(encoder), pool), Tokenising(load_tokenizer(str(tiny_model)))
    worth = []
    for steps in (0, 8):
        made = stage(tiny_model, encoder, dtype=dtype, batch_tokens=300, refine=steps).run(DOCUMENTS, Run(gpu))
        spans, slots = [], []
        for document, one in zip(DOCUMENTS, made, strict=True):
            assert isinstance(one, Result) and one.slots
            (tokens,) = tokeniser.tokenise(document.parts.contexts[:1])
            spans.append(tokens.ids[: cut(len(tokens.ids), 16)[0]].tolist())
            slots.append(unpack(one.slots)[: slots_of(len(spans[-1]), 4.0)])
        with torch.inference_mode():
            found = nats(coder, [coder.prompt([[], []], [one], "AE") for one in slots], spans)
        worth.append([float(one.mean()) for one in found])
    assert all(now < was for was, now in zip(*worth, strict=True))
    gpu.close()
