"""Contexts into slots and answers from them, as a user has it: one night, and the night after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from command import User
from safetensors.numpy import load_file
from tiny_models import lines, save_tiny_encoder, save_tiny_llama

JOB = """name = "slots"
[input]
path = "corpus.jsonl"
[target]
model = {model}
prices = ["openai:gpt-5.1"]
[[stages]]
kind = "encode"
encoder = {encoder}
precision = "int8"
group = 32
[[stages]]
kind = "generate"
max_new_tokens = 8
draft_tokens = 2
[[stages]]
kind = "evaluate"
task = "qa"
"""


def corpus(number: int) -> str:
    rows = [
        {"id": f"d{at}", "contexts": [lines()[at], lines()[at + 1]], "question": "How many?", "answer": "7"}
        for at in range(number)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_two_nights_of_answers_from_slots(user: User, tiny_model: Path) -> None:
    encoder = save_tiny_encoder(user.folder / "encoder", tiny_model)
    user.write("job.toml", JOB.format(model=json.dumps(str(tiny_model)), encoder=json.dumps(str(encoder))))
    user.write("corpus.jsonl", corpus(6))
    dry = user.says("run", "job.toml", "-o", "o", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    encode, generate, _ = dry.json["stages"]
    assert encode["tokens_out"] == round(encode["tokens_in"] / 4) == generate["tokens_in"] > 0

    night = user.says("run", "job.toml", "-o", "o", "--json", seconds=120)
    assert night.code == 0, night.err
    (folder,) = user.folder.glob("o/slots-*")
    rows = rows_of(folder)
    assert [row["doc_id"] for row in rows] == [f"d{at}" for at in range(6)]
    for row in rows:
        kept = load_file(folder / row["slots_file"])
        assert kept[row["slots_key"]].shape == (row["slots"], 64) and str(kept[row["slots_key"]].dtype) == "int8"
        assert row["slots"] + 2 <= row["tokens_prompt"] and row["tokens_compressed"] < row["tokens_original"]
        assert 0 < row["slots_loss"] < 0.02 and row["generated"]
    told = night.json["stages"]
    assert [stage["kind"] for stage in told] == ["encode", "generate", "evaluate"]
    sums = [sum(row[name] for row in rows) for name in ("tokens_original", "tokens_compressed", "tokens_prompt")]
    assert [told[0]["tokens_in"], told[0]["tokens_out"], told[1]["tokens_in"]] == sums
    assert [saving["tokens_removed"] for saving in night.json["savings"]] == [sums[0] - sums[1]]
    assert night.json["evaluations"][0]["tokens_compressed"] == sums[1]
    held = sum(path.stat().st_size for path in (folder / "slots").iterdir())
    assert night.json["places"]["slot_bytes"] == held > sum(row["slots_bytes"] for row in rows)
    assert f"{folder}/slots (" in user.says("report", night.json["job_id"], "-o", "o").out.replace("\n", "")
    page = (folder / "report.html").read_text()
    assert "Memory slots" in page
    assert "encode" in page and "(int8)" in page and "Prompt tokens removed" in page

    user.write("corpus.jsonl", corpus(7))
    after = user.says("run", "job.toml", "-o", "o", "--json", seconds=120)
    assert after.code == 0, after.err
    assert [stage["reused"] for stage in after.json["stages"]] == [6, 6, 0]
    again = rows_of(next(one for one in user.folder.glob("o/slots-*") if one != folder))
    assert [row["slots_sha256"] for row in again[:6]] == [row["slots_sha256"] for row in rows]


def test_what_is_wrong_is_said_before_anything_runs(user: User, tiny_model: Path) -> None:
    encoder = save_tiny_encoder(user.folder / "encoder", tiny_model)
    (user.folder / "other").mkdir()
    other = save_tiny_llama(user.folder / "other", seed=1)
    user.write("job.toml", JOB.format(model=json.dumps(str(tiny_model)), encoder=json.dumps(str(encoder))))
    user.write("corpus.jsonl", corpus(2))
    for words, code, said in (
        (["--set", f"target.model={other}"], 1, "slots are read by the very model they were trained for"),
        (["--set", "stages.0.encoder=nowhere"], 1, "no encoder 'nowhere'"),
        (["--set", "stages.0.span=2000"], 1, "lower span"),
        (["--set", "stages.0.encodr=x"], 2, "did you mean encoder?"),
        (["--set", "stages.1.backend=openai", "--set", "stages.1.draft_tokens="], 2, "an endpoint takes no slots"),
    ):
        ended = user.says("run", "job.toml", "-o", "o", *words)
        assert (ended.code, said in " ".join(ended.err.split())) == (code, True), ended.err
    assert not list(user.folder.glob("o/slots-*"))
