"""What a worker keeps while it scores, encodes and answers in turns."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from encoding_jobs import TEXTS, document, encoder_of, stage
from tiny_models import save_tiny_llama

from pipeline.compression.stage import Compress
from pipeline.generation.stage import Generate
from pipeline.memory import encoder, resident
from pipeline.models import ModelPool, loading
from pipeline.models import pool as pools
from pipeline.stages import Result, Run, Stage
from schemas.compress import LLMLinguaSpec
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec


def test_scoring_encoding_and_drafted_answering_in_turns_loads_each_model_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four models of a worker with the default limit of two: a scorer and a target, with what works beside that."""
    loaded: list[str] = []

    def counted(name: str, load: Any) -> Any:
        @functools.wraps(load)
        def one(*args: Any, **kwargs: Any) -> Any:
            loaded.append(name)
            return load(*args, **kwargs)

        return one

    monkeypatch.setattr(pools, "load", counted("model", loading.load))
    monkeypatch.setattr(resident, "filled", counted("encoder", encoder.filled))
    encoder_of(tiny_model)
    scorer, drafter = (save_tiny_llama(tmp_path / name, seed) for name, seed in (("scorer", 1), ("drafter", 2)))
    target = TargetSpec(model=str(tiny_model))
    told = {"drafters": [str(drafter)], "max_new_tokens": 4}
    stages: list[Stage] = [
        Compress(LLMLinguaSpec(kind="compress", method="llmlingua", model=str(scorer), rate=0.5), target),
        stage(tiny_model),
        Generate(GenerateSpec.model_validate({"kind": "generate", **told}), target),
    ]
    loaded.clear()
    documents, run = [document(0, TEXTS[0], question="How many?")], Run(ModelPool("cpu"))
    for one in (*stages, *reversed(stages), *stages):
        (outcome,) = one.run(documents, run)
        assert isinstance(outcome, Result)
    assert sorted(loaded) == ["encoder", "model", "model", "model"]
