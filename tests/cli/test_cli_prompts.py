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
    assert f"{counts['rows']} of {counts['prompts']} prompts answered to an end: rows.jsonl" in again.out
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


def test_a_dry_run_says_what_both_jobs_would_take_and_asks_nothing(prepared: User, tiny_model: Path) -> None:
    words = "icae", "prompts", "prompts.toml", "rows.jsonl", "-o", "o", "--specific", "4", "--general", "5"
    said = prepared.says(*words, "--dry-run")
    told = " ".join(said.out.split())
    assert said.code == 0, said.err
    assert f"1 of 2: {tiny_model} would write 8 prompts about 2 contexts" in told
    assert f"2 of 2: {tiny_model} would answer 18 prompts at most" in told and "together 26 calls, " in told
    found = prepared.says(*words, "--dry-run", "--json").json
    assert found["rows"] == {"contexts": 2, "left_out": 0, "asked": 8, "prompts": 18}
    first, second = found["jobs"]
    assert [(one["job"], one["documents"]) for one in (first, second)] == [("prompts", 8), ("answers", 18)]
    assert first["seconds"] > 0 and second["seconds"] > first["seconds"] and first["stages"][0]["tokens_out"] == 48
    assert not (prepared.folder / "o").exists() and not (prepared.folder / "rows.jsonl").exists()
    done, *_ = prepared.says(*words, "--json", seconds=180).json["jobs"]
    assert done["documents"]["done"] + done["documents"]["reused"] == first["documents"]
    assert done["stages"][0]["tokens_in"] == pytest.approx(first["tokens"], rel=0.3)


def test_where_no_answer_ends_there_are_no_rows(prepared: User) -> None:
    prepared.write("rows.jsonl", "of before")
    words = "--specific", "0", "--general", "1", "--set", "stages.0.stop=[]", "--set", "stages.0.max_new_tokens=1"
    ended = prepared.says("icae", "prompts", "prompts.toml", "rows.jsonl", "-o", "o", *words)
    told = " ".join(ended.err.split())
    assert ended.code == 1 and "no answer to 2 prompts came to an end, and rows.jsonl is left as it was" in told, told
    assert (prepared.folder / "rows.jsonl").read_text() == "of before"


def test_a_dry_run_of_a_hosted_model_needs_no_key_and_says_its_price(prepared: User) -> None:
    sets = 'stages.0.backend="openai"', 'target.model="gpt-4o-mini"', 'stages.0.budget_usd="1"'
    words = "icae", "prompts", "prompts.toml", "rows.jsonl", "-o", "o", "--specific", "1", "--dry-run"
    said = prepared.says(*words, *(word for one in sets for word in ("--set", one)))
    assert said.code == 0, said.err
    bills = [line for line in said.out.splitlines() if line.startswith(("calls cost $", "together 14 calls, "))]
    assert len(bills) == 3 and all(", at most $" in line for line in bills)


def test_an_input_without_a_text_is_refused_before_anything_is_made(prepared: User) -> None:
    prepared.write("texts.jsonl", '{"text": " "}\n{"text": 7}\n')
    ended = prepared.says("icae", "prompts", "prompts.toml", "rows.jsonl", "-o", "o")
    why = "no row of texts.jsonl holds a text; 2 cannot be read, the first: texts.jsonl:1: column 'text' holds only"
    assert (ended.code, why in " ".join(ended.err.split())) == (1, True), ended.err
    assert not (prepared.folder / "o").exists()


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ("no/rows.jsonl", [], "no/rows.jsonl cannot be written (No such file or directory): name a file in a folder"),
        ("is.jsonl", [], "is.jsonl is a folder: name a file"),
        ("rows.jsonl", ["--set", 'target.model="nowhere"'], "no model 'nowhere'"),
    ],
)
def test_what_would_fail_at_the_end_is_said_at_the_beginning(
    prepared: User, rows: str, words: list[str], said: str
) -> None:
    (prepared.folder / "is.jsonl").mkdir()
    before = sorted(prepared.folder.iterdir())
    ended = prepared.says("icae", "prompts", "prompts.toml", rows, "-o", "o", *words)
    assert (ended.code, said in " ".join(ended.err.split())) == (1, True), ended.err
    assert sorted(prepared.folder.iterdir()) == before
