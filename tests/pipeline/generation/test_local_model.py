"""The real default model answers a real question."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import ModelPool
from pipeline.stages import Result, Run, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec

QUESTIONS = ["What is the capital of France?", "What is 2 + 2?", "Name the colour of the sky on a clear day."]


@pytest.mark.model
def test_the_default_model_answers_in_its_chat_format(model_cache: Path) -> None:
    stage = {"kind": "generate", "max_new_tokens": 24, "stop": ["\n\n"]}
    job = JobSpec.model_validate({"input": {"path": "x"}, "stages": [stage]})
    parts = [PromptParts(question=question) for question in QUESTIONS]
    documents = [Document(seq, str(seq), part, part.content_hash()) for seq, part in enumerate(parts)]
    run = Run(ModelPool("cpu"))
    together = build(job, 0).run(documents, run)
    alone = [build(job, 0).run([document], run)[0] for document in documents]
    rows = [outcome.fields for outcome in together if isinstance(outcome, Result)]
    assert "Paris" in rows[0]["generated"] and "4" in rows[1]["generated"] and "blue" in rows[2]["generated"]
    assert rows[0]["finish_reason"] == "stop"  # its end of turn was met, not only the limit
    assert all("<|im_" not in row["generated"] for row in rows)
    assert [row["generated"] for row in rows] == [one.fields["generated"] for one in alone if isinstance(one, Result)]
