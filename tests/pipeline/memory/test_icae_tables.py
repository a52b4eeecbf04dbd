"""What was measured of an encoder goes into a page between two lines, and nothing of another encoder does."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pretraining_jobs import TEXTS, stage

from benchmarks import icae_tables
from pipeline.memory.encoder import load_encoder
from pipeline.memory.evaluated import Asked
from pipeline.memory.evaluating import evaluate
from pipeline.memory.form import FORMS
from pipeline.memory.kinds import kinds
from pipeline.models import ModelPool, load_tokenizer
from pipeline.models.encoders import Answers, read_manifest
from pipeline.stages import Run


def test_tables_of_what_was_measured(
    tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tiny_model, steps=20).run(TEXTS, Run(pool, folder=str(tmp_path)))
    encoder, manifest = tmp_path / "encoder", read_manifest(tmp_path / "encoder")
    four = (2.0, 1.0, 3.0, None)
    answered = replace(manifest, answers=Answers(8, 4, four, four, four, None))
    (encoder / "contextmill.json").write_text(answered.to_json())
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": one.prompt}) + "\n" for one in TEXTS))
    of = kinds({"prose": [str(tmp_path / "texts.jsonl")]}, load_tokenizer(str(tiny_model)), 1024, 0)
    forms = FORMS["float16"], FORMS["int4"]
    asked = Asked((16,), (2.0,), span=16, rows=2, continued=8, batch_tokens=512, half=False, forms=forms)
    *_, found = evaluate(load_encoder(str(encoder), pool), load_tokenizer(str(tiny_model)), of, asked, lambda *_: None)
    said = {"sha256": manifest.sha256, **found.to_json()}
    (tmp_path / "found.json").write_text(json.dumps(said))
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- encoder: measured -->\nold\n<!-- encoder: end -->\n\nAfter.\n")
    words = [
        str(encoder),
        "--training",
        str(encoder),
        "--evaluation",
        str(tmp_path / "found.json"),
        "--into",
        str(page),
    ]
    monkeypatch.setattr(sys, "argv", ["icae_tables", *words])
    icae_tables.main()
    text = page.read_text()
    icae_tables.main()
    assert page.read_text() == text and "old" not in text
    assert text.startswith("Before.\n\n<!-- encoder: measured -->\n\n| training |") and text.endswith("\n\nAfter.\n")
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("| encoder, 20 steps | ")][1:], "a row for each training"
    assert any(line.startswith("| prose | 16 | 8 | int4 | 34 | ") for line in lines)
    assert any(line.startswith("| prose | 16 | 8 | ") for line in lines) and "| 10% | 20% |" in text
    assert "| nats a token | 2.000 | 1.000 | 3.000 | – |" in lines and "| token F1 | 200.0 |" in text

    page.write_text("<!-- encoder: end -->\n<!-- encoder: measured -->\n")
    with pytest.raises(SystemExit, match="there must be one line <!-- encoder: measured -->"):
        icae_tables.main()
    (tmp_path / "found.json").write_text(json.dumps({**said, "sha256": "0"}))
    with pytest.raises(SystemExit, match="is of another encoder"):
        icae_tables.main()
    (tmp_path / "found.json").write_text(json.dumps({**said, "unfinished": True}))
    with pytest.raises(SystemExit, match="is unfinished"):
        icae_tables.main()
