"""`contextmill distill` as a user has it: killed and run again, then drafting in the job that it was made for."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import User

JOB = """name = "night"
[input]
path = "prompts.jsonl"
[target]
model = {model}
[[stages]]
kind = "compress"
method = "random"
rate = 0.8
[[stages]]
kind = "generate"
max_new_tokens = 8
{more}
"""
QUICK = "--set", "distill.documents_per_step=4", "--set", "distill.checkpoint_seconds=0.0"


def prepared(user: User, model: Path, prompts: int = 16, more: str = "") -> None:
    user.write("night.toml", JOB.format(model=json.dumps(str(model)), more=more))
    text = "What is {0} plus {0}? Think about it before you say what it is.".format
    rows = [{"id": f"q{number}", "text": text(number)} for number in range(prompts)]
    user.write("prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def steps_of(user: User) -> list[str]:
    return sorted(path.name for path in user.folder.glob("o/swift-*/distill/checkpoints/step-*"))


def test_a_killed_distillation_goes_on_and_its_drafter_drafts_by_name(
    user: User, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(user, tiny_model)
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(user.folder / "cache"))
    monkeypatch.setenv("CONTEXTMILL_LEASE_SECONDS", "3")
    monkeypatch.setenv("CONTEXTMILL_RENEW_SECONDS", "1")
    words = "distill", "night.toml", "swift", "--layers", "1", "-o", "o", *QUICK, "--set", "distill.epochs=5"
    running = subprocess.Popen(
        user.command(*words), cwd=user.folder, env=user.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(steps_of(user)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait(20)
    assert steps_of(user)[0] > "step-00000000"
    ended = user.says(*words, "--json")
    assert ended.code == 0, ended.err
    assert "16 answers teach little" in ended.err
    said = ended.json
    assert [job["state"] for job in said["jobs"]] == ["done", "done"]
    drafter = said["drafter"]
    assert (drafter["name"], drafter["begun_from"]) == ("swift", f"1 layer of {tiny_model}")
    assert drafter["nats"][1] < drafter["nats"][0] and drafter["after"]["tokens_drafted"] > 0

    again = user.says(*words)
    assert again.code == 0 and 'drafters = ["swift"]' in again.out and "of its drafts accepted" in again.out
    plain = user.says("run", "night.toml", "-o", "o", "--json")
    assert plain.json["job_id"] == said["jobs"][0]["job_id"], "the job is the one whose answers were learned"
    drafted = user.says("run", "night.toml", "-o", "p", "--set", 'stages.1.drafters=["swift"]', "--json")
    assert drafted.code == 0, drafted.err
    first, second = (published(user, output) for output in "op")
    assert [row["generated"] for row in first] == [row["generated"] for row in second]
    assert sum(row["tokens_drafted"] for row in second) > 0
    other = user.says(*words, "--set", "distill.epochs=2")
    assert other.code == 1 and "another drafter is called swift already" in other.err


def published(user: User, output: str) -> list[Any]:
    (folder,) = user.folder.glob(f"{output}/night-*/data")
    return list(pq.read_table(folder).to_pylist())


def test_what_is_wrong_is_said_before_anything_is_answered(user: User, tiny_model: Path, tmp_path: Path) -> None:
    prepared(user, tiny_model)
    for words, code, said in (
        ([], 2, "--layers N (of the target), or --drafter NAME"),
        (["--layers", "9"], 1, "has 2 layers: name fewer"),
        (["--layers", "1", "--drafter", str(tiny_model)], 2, "one of them"),
        (["--drafter", "nowhere"], 1, "no model 'nowhere'"),
        (["--layers", "1", "--set", "distill.epoch=2"], 2, "unknown key distill.epoch"),
        (["--layers", "1", "--set", 'stages.1.backend="openai"'], 2, "an endpoint drafts by itself"),
    ):
        ended = user.says("distill", "night.toml", "swift", "-o", "o", *words)
        assert (ended.code, said in " ".join(ended.err.split())) == (code, True), ended.err
    assert not list(user.folder.glob("o/*-*"))
    dry = user.says("distill", "night.toml", "swift", "--layers", "1", "--dry-run")
    assert dry.code == 0 and not list(user.folder.glob("runs/*"))


def test_a_single_answer_is_too_few(user: User, tiny_model: Path) -> None:
    prepared(user, tiny_model, prompts=1)
    ended = user.says("distill", "night.toml", "swift", "--layers", "1")
    assert ended.code == 1 and "1 answers are too few" in ended.err and "(-i)" in ended.err
