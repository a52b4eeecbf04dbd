"""Drafters as a job names them: looked at when it is submitted, done without where they are missing, accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models import ModelError, ModelPool
from pipeline.stages import Result, Run, build, check, stage_hashes
from schemas.document import Document, PromptParts
from schemas.job import JobSpec


def test_drafters_are_looked_at_when_the_job_is_submitted(models: dict[str, Path]) -> None:
    def submitted(drafter: str) -> JobSpec:
        stage = {"kind": "generate", "drafters": [drafter]}
        target = {"model": str(models["llama"])}
        spec = JobSpec.model_validate({"input": {"path": "x"}, "target": target, "stages": [stage]})
        check(spec)
        return spec

    gpt2, llama = (build(submitted(str(models[name])), 0) for name in ("gpt2", "llama"))
    assert gpt2.identity() == llama.identity()  # drafts change no answer
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        submitted("nowhere")
    for name in ("layers:0", "layers:-1", "layers:x"):
        with pytest.raises(ModelError, match="layers:N are the target's own first N layers, N at least 1"):
            submitted(name)


def test_a_drafter_that_is_not_on_this_machine_is_done_without(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    stage = {"kind": "generate", "max_new_tokens": 9, "drafters": ["nowhere"]}
    job = JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": str(models["llama"])}, "stages": [stage]})
    assert stage_hashes(job)  # which a worker compares with those of the job
    parts = PromptParts(contexts=("x",))
    (outcome,) = build(job, 0).run([Document(0, "0", parts, "h")], Run(ModelPool("cpu")))
    assert isinstance(outcome, Result) and outcome.fields["target_passes"] == outcome.fields["tokens_generated"]
    assert "nowhere does not draft: no model 'nowhere'" in caplog.text
    drafts = {one["model"]: one["drafted"] for one in outcome.fields["drafts"]}
    assert drafts["nowhere"] == 0, "a report is to name it, too"


def test_a_stage_drafts_from_the_original_of_a_compressed_prompt(models: dict[str, Path]) -> None:
    """The columns say how much that saved; the answer is the same."""
    folder, run = str(models["llama"]), Run(ModelPool("cpu"))

    def rows(original: str, **settings: Any) -> list[dict[str, Any]]:
        stage = {"kind": "generate", "max_new_tokens": 100, "chat": False, **settings}
        job = JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": folder}, "stages": [stage]})
        parts = PromptParts(contexts=(original,))
        document = Document(0, "0", parts, "same", fields={"compressed": "How many clips did she sell?"})
        return [outcome.fields for outcome in build(job, 0).run([document], run) if isinstance(outcome, Result)]

    (plain,) = rows("x")
    (elsewhere,), (copied,) = (rows(one, draft_tokens=7, draft_earlier=0) for one in ("x", plain["generated"]))
    assert plain["generated"] == elsewhere["generated"] == copied["generated"]
    assert (plain["target_passes"], plain["tokens_drafted"], plain["tokens_accepted"]) == (100, 0, 0)
    assert copied["tokens_accepted"] > elsewhere["tokens_accepted"] + 20
    assert copied["target_passes"] + copied["tokens_accepted"] == copied["tokens_generated"] == 100
    assert copied["tokens_drafted"] == 7 * (copied["target_passes"] - 1)
