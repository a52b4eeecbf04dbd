"""What `make demo-memory` puts together, on a tiny model: its passages, three jobs of one file, and what is shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import User
from tiny_models import save_tiny_encoder

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "examples/memory.jsonl"


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


def shown(user: User, folder: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "examples/show_memory.py"), folder]
    environment = user.environment(PYTHONPATH=str(ROOT))
    return subprocess.run(words, cwd=user.folder, env=environment, capture_output=True, text=True)


def test_each_passage_is_asked_about_three_times_and_holds_its_answers() -> None:
    passages = {row["contexts"][0] for row in rows()}
    assert len(passages) == 4 and len(rows()) == 12 == len({row["id"] for row in rows()})
    for row in rows():
        (passage,) = row["contexts"]
        assert row["question"].endswith("?") and re.search(r", 1[89]\d\d", row["source"])
        said = passage.lower()
        assert any(re.sub(r"^(an?|the|in) ", "", answer).lower() in said for answer in row["answer"]), row["id"]


def test_the_demo_from_slots_to_what_is_shown(user: User, tiny_model: Path) -> None:
    encoder = save_tiny_encoder(user.folder / "encoder", tiny_model)
    repeated = user.says("icae", "reconstruct", str(encoder), str(CORPUS), "--precision", "int8", "--json")
    assert repeated.code == 0, repeated.err
    texts = repeated.json["texts"]
    assert [one["text"] for one in texts] == list(dict.fromkeys(row["contexts"][0] for row in rows()))
    assert all(one["bytes"] == one["slots"] * 66 and one["slots"] * 3 < one["tokens"] for one in texts)
    seen = user.says("icae", "reconstruct", str(encoder), str(CORPUS), "--most", "1", "--span", "16")
    assert (
        seen.code == 0
        and "text 1  " in seen.out
        and "from its " in seen.out
        and " ..." in seen.out
        and "text 2" not in seen.out
    )

    missing = shown(user, "o")
    assert missing.returncode == 1 and "no finished job memory-text in o" in missing.stderr
    of_all = ["-i", str(CORPUS), "-o", "o", "--set", f"target.model={tiny_model}", "--json"]
    variants: dict[str, list[str]] = {
        "memory": [f"stages.0.encoder={encoder}", "stages.1.max_new_tokens=4"],
        "memory-text": ["name=memory-text", "stages.0=", "stages.0.max_new_tokens=4"],
        "memory-nothing": ["name=memory-nothing", "stages.0=", "stages.0.max_new_tokens=4", "input.columns.contexts="],
    }
    read = {}
    for name, sets in variants.items():
        flags = [word for one in sets for word in ("--set", one)]
        ended = user.says("run", str(ROOT / "examples/memory.toml"), *of_all, *flags, seconds=120)
        assert ended.code == 0, ended.err
        (data,) = user.folder.glob(f"o/{name}-{ended.json['job_id']}/data")
        read[name] = [row["tokens_prompt"] for row in pq.read_table(data).to_pylist()]
    assert sum(read["memory-nothing"]) * 2 < sum(read["memory"]) * 2 < sum(read["memory-text"])

    said = shown(user, "o")
    assert said.returncode == 0, said.stderr
    assert all(f"{row['question']}  ({row['answer'][0]})" in said.stdout for row in rows())
    for side, name in {"the text": "memory-text", "its slots": "memory", "nothing": "memory-nothing"}.items():
        (line,) = re.findall(rf"^{side} .*", said.stdout, re.MULTILINE)
        assert line.split()[len(side.split())] == f"{sum(read[name]) / 12:.0f}"
        assert said.stdout.count(f"  from {side:<9} (") == 12


@pytest.mark.parametrize(
    ("words", "code", "wrong"),
    [
        (["nowhere", str(CORPUS)], 1, "no encoder 'nowhere'"),
        (["encoder", "empty.jsonl"], 2, "none of its rows is a text"),
        (["encoder", str(CORPUS), "--precision", "int2"], 2, "--precision int2"),
        (["encoder", str(CORPUS), "--slots", "2", "--ratio", "4"], 2, "error: a span has either so many slots"),
    ],
)
def test_what_cannot_be_repeated_is_said_at_once(
    words: list[str], code: int, wrong: str, user: User, tiny_model: Path
) -> None:
    save_tiny_encoder(user.folder / "encoder", tiny_model)
    user.write("empty.jsonl", '{"text": " "}\n')
    ended = user.says("icae", "reconstruct", *words)
    assert (ended.code, wrong in " ".join(ended.err.split())) == (code, True), ended.err


def test_what_is_not_repeated_is_said_and_where_the_rest_was_read(user: User, tiny_model: Path) -> None:
    save_tiny_encoder(user.folder / "encoder", tiny_model)
    texts = "a mill grinds corn", "a mill grinds corn", "the old man and the sea", "water turns the wheel"
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    user.write("some.jsonl", '{"text": "cut\n' + rows)
    ended = user.says("icae", "reconstruct", "encoder", "some.jsonl", "--most", "2", "--json")
    assert ended.code == 0 and [one["source"] for one in ended.json["texts"]] == ["some.jsonl:2", "some.jsonl:4"]
    assert "1 row left out: cannot be read, the first: some.jsonl:1: " in ended.err
    assert "1 row with a text of one before" in ended.err and "2 of 3 texts; --most" in ended.err


def test_texts_may_stand_in_a_column_of_any_name(user: User, tiny_model: Path) -> None:
    save_tiny_encoder(user.folder / "encoder", tiny_model)
    user.write("some.csv", "body,other\na mill grinds corn,1\n")
    words = "icae", "reconstruct", "encoder", "some.csv", "--json"
    ended = user.says(*words, "--column", "body")
    assert ended.code == 0 and [one["text"] for one in ended.json["texts"]] == ["a mill grinds corn"], ended.err
    assert "or by --column" in user.says(*words).err
    measured = user.says("icae", "evaluate", "encoder", "-t", "some.csv", "--column", "body", "--kind", "some",
                         "--tokens", "4", "--rows", "2", "--json")  # fmt: skip
    assert measured.code == 0 and measured.json["repeated"][0]["kind"] == "some", measured.err
