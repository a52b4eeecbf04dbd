"""`contextmill distill` as a user has it: killed and run again, then drafting in the job that it was made for."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from command import User

from pipeline.cli.distilling import FEW, _check_enough
from pipeline.jobfile import load, load_job
from schemas.distill_file import DistillFile

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
"""
QUICK = "--set", "distill.documents_per_step=4", "--set", "distill.checkpoint_seconds=0.0"  # a checkpoint a step


def prepared(user: User, model: Path) -> None:
    user.write("night.toml", JOB.format(model=json.dumps(str(model))))
    text = "What is {0} plus {0}? Think about it before you say what it is.".format
    rows = [{"id": f"q{number}", "text": text(number)} for number in range(16)]
    user.write("prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def steps_of(user: User) -> list[str]:
    return sorted(path.name for path in user.folder.glob("o/swift-*/distill/checkpoints/step-*"))


def test_a_killed_distillation_goes_on_and_its_drafter_drafts_by_name(
    user: User, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(user, tiny_model)
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(user.folder / "cache"))
    words = "distill", "night.toml", "swift", "--layers", "1", "-o", "o", *QUICK, "--set", "distill.epochs=5"
    running = subprocess.Popen(
        user.command(*words), cwd=user.folder, env=user.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(steps_of(user)) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait(60)
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
    drafted = user.says("run", "night.toml", "-o", "p", "--set", 'stages.1.drafters=["swift"]', "--json")
    assert drafted.code == 0, drafted.err
    first, second = (published(user, output) for output in "op")
    assert [row["generated"] for row in first] == [row["generated"] for row in second]
    assert sum(row["tokens_drafted"] for row in second) > 0


def test_the_job_whose_answers_are_learned_is_the_one_that_run_makes(user: User, tiny_model: Path) -> None:
    prepared(user, tiny_model)
    path = user.folder / "night.toml"
    spec = load(path, DistillFile, ["distill.layers=1"])
    assert spec.job == load_job(path) and spec.job.spec_hash() == load_job(path).spec_hash()


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
        (["--layers", "1", "--set", "distill.epoch=2"], 2, "--set distill.epoch: unknown key"),
        (["--layers", "1", "--set", "distill.answers.temperature=1.0"], 2, "leave distill.answers out"),
        (["--layers", "1", "--set", 'stages.1.backend="openai"'], 2, "an endpoint drafts by itself"),
    ):
        ended = user.says("distill", "night.toml", "swift", "-o", "o", *words)
        assert (ended.code, said in " ".join(ended.err.split())) == (code, True), ended.err
    assert not list(user.folder.glob("o/*-*"))
    dry = user.says("distill", "night.toml", "swift", "--layers", "1", "--dry-run")
    assert dry.code == 0 and not list(user.folder.glob("runs/*"))


def test_a_name_that_no_drafter_can_have_is_blamed_on_the_name(user: User, tiny_model: Path) -> None:
    """Not on a setting of the environment: it would be a job's name, too."""
    prepared(user, tiny_model)
    ended = user.says("distill", "night.toml", "../swift", "-o", "o", "--layers", "1")
    assert ended.code == 1 and "a drafter cannot be called '../swift'" in ended.err and "CONTEXTMILL_" not in ended.err


def test_a_single_answer_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        _check_enough(1)
    _check_enough(FEW)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 answer: too few" in said and "(-i)" in said and str(FEW) not in said
