"""The bundled model says what transformers' greedy ``generate`` said, made once by ``benchmarks.exact_decoding``."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest

from pipeline.generation import local
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import ModelPool
from pipeline.stages import Run
from schemas.base import DEFAULT_MODEL
from schemas.stage import GenerateSpec

MADE = Path("tests/data/decoding/smollm2_greedy.parquet")


@pytest.mark.model
@pytest.mark.parametrize("drafts", [0, 7])
def test_answers_are_those_of_transformers(model_cache: Path, drafts: int) -> None:
    assert model_cache.is_dir()
    rows = pq.read_table(MADE).to_pylist()
    assert len(rows) == 500 and {len(row["answer"]) for row in rows} == {128}
    some, new = rows[5 * drafts :: 50][:9], 48
    pool = ModelPool("cpu")
    spec = GenerateSpec(kind="generate", draft_tokens=drafts)
    generator = LocalGenerator(pool.causal_lm(DEFAULT_MODEL), spec, Run(pool))
    with mock.patch.object(local, "end_tokens", lambda *some: frozenset()):
        found = generator.generate([Prompt(row["prompt"], new) for row in some])
    assert [one.tokens for one in found] == [row["answer"][:new] for row in some]
    assert len({token for one in found for token in one.tokens}) > 50
    assert not drafts or sum(one.passes for one in found) < sum(len(one.tokens) for one in found)
