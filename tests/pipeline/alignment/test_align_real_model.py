"""The bundled scorer learns how answers to arithmetic are worded, and scores under the name of its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.alignment.stage import Align
from pipeline.models import ModelPool
from pipeline.models.adapters import read_manifest
from pipeline.stages import Result, Run, build, stage_hashes
from schemas.align import AlignSpec
from schemas.base import DEFAULT_MODEL
from schemas.document import Document, PromptParts
from schemas.job import JobSpec, TargetSpec


def document(number: int) -> Document:
    parts = PromptParts(question=f"{number} + {number + 5}?")
    answer = f"Verily, {number} joined unto {number + 5} is {2 * number + 5}. #### {2 * number + 5}"
    return Document(number, f"q{number}", parts, parts.content_hash(), answer=answer)


@pytest.mark.model
@pytest.mark.usefixtures("model_cache")
def test_the_bundled_scorer_learns_and_scores_by_name(tmp_path: Path) -> None:
    pool = ModelPool("cpu")
    settings = {
        "kind": "align",
        "epochs": 1,
        "documents_per_step": 2,
        "learning_rate": 2e-3,
        "rank": 4,
        "held_out": 0.3,
    }
    stage = Align(AlignSpec.model_validate(settings), TargetSpec())
    outcomes = stage.run([document(number) for number in range(8)], Run(pool, folder=str(tmp_path)))
    held = [one.fields for one in outcomes if isinstance(one, Result) and one.fields["split"] == "held_out"]
    assert held and all(row["nll_after"] < row["nll_before"] - 0.3 for row in held)
    manifest = read_manifest(tmp_path / "adapter")
    assert manifest.base == DEFAULT_MODEL and manifest.nll_after < manifest.nll_before

    prompt = PromptParts(contexts=(" ".join(document(number).answer or "" for number in range(6)),), question="7 + 12?")
    texts, hashes = [], []
    for name in (DEFAULT_MODEL, f"{DEFAULT_MODEL}+{tmp_path / 'adapter'}"):
        compress = {"kind": "compress", "model": name, "target_tokens": 60}
        job = JobSpec.model_validate({"input": {"path": "x"}, "stages": [compress]})
        (outcome,) = build(job, 0).run([Document(0, "d", prompt, prompt.content_hash())], Run(pool))
        assert isinstance(outcome, Result) and 50 <= outcome.tokens_out <= 60
        texts.append(outcome.fields["compressed"])
        hashes += stage_hashes(job)
    # What the aligned scorer has come to expect is what it leaves out.
    assert texts[1].count("####") < texts[0].count("####")
    assert hashes[0] != hashes[1]
