"""`contextmill icae prompts` as a user has it: contexts become rows that `icae finetune` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import User

JOB = """name = "asked"
[input]
path = "texts.jsonl"
[target]
model = {model}
[[stages]]
kind = "generate"
max_new_tokens = 12
stop = ["a", "e", "o"]
"""
TEXTS = "Janet sold 48 clips in April. Half as many went in May.", "A taco costs $2. A burger costs $5."


@pytest.fixture
def prepared(user: User, tiny_model: Path) -> User:
    user.write("prompts.toml", JOB.format(model=json.dumps(str(tiny_model))))
    user.write("texts.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in (*TEXTS, TEXTS[0])))
    return user


def test_contexts_become_rows_and_nothing_is_asked_twice(prepared: User) -> None:
    words = "icae", "prompts", "prompts.toml", "rows.jsonl", "-o", "o", "--specific", "4", "--general", "5"
    ended = prepared.says(*words, "--json", seconds=180)
    assert ended.code == 0, ended.err
    assert [job["state"] for job in ended.json["jobs"]] == ["done", "done"]
    counts = ended.json["rows"]
    assert (counts["contexts"], counts["asked"], counts["prompts"]) == (2, 8, counts["specific"] + 10)
    rows = [json.loads(line) for line in (prepared.folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == counts["rows"] > 0  # a random model's words end in a stop string soon
    assert all(set(row) == {"input", "prompt", "answer"} and row["input"] in TEXTS for row in rows)
    before = (prepared.folder / "rows.jsonl").read_bytes()
    again = prepared.says(*words)
    assert again.code == 0 and again.out.count("nothing is done twice") == 2
    assert f"{counts['rows']} of {counts['prompts']} prompts are answered to an end: rows.jsonl" in again.out
    assert (prepared.folder / "rows.jsonl").read_bytes() == before


def test_what_is_wrong_is_said(prepared: User) -> None:
    for words, said in (
        (["rows.jsonl", "--set", 'stages=[{kind="copy"}]'], 'one stage of kind = "generate" is wanted here, not copy'),
        (["rows.jsonl", "--specific", "0", "--general", "0"], "nothing would be asked"),
        (["rows.csv"], "whose name ends in .jsonl"),
        (["texts.jsonl"], "is what is read: name another file"),
    ):
        ended = prepared.says("icae", "prompts", "prompts.toml", *words, "-o", "o")
        assert (ended.code, said in " ".join(ended.err.split())) == (2, True), ended.err
