"""What reference fidelity lacks is said when a job is submitted, and where the library would crash, a log line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from compress_models import WORDS, Compressing, stage_of

from pipeline.models import ModelNotFound
from pipeline.stages import Result
from schemas.document import PromptParts


def test_missing_sentence_data_are_noticed_before_there_is_a_job(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(tmp_path))
    stage = stage_of(tiny, fidelity="reference", options={"use_sentence_level_filter": True})
    with pytest.raises(ModelNotFound, match="contextmill models pull punkt-english"):
        stage.identity()
    assert stage_of(tiny, fidelity="reference").identity()


def test_a_crash_of_the_library_is_logged_with_the_document(
    compressing: Compressing, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (outcome,) = compressing(PromptParts(contexts=(WORDS[:300], "")), fidelity="reference", options={"rate": 0.5})
    assert isinstance(outcome, Result)
    assert "0: the library would crash here" in caplog.text
