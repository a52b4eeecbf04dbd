"""`contextmill icae` as a user has it: an encoder is trained by a job, measured, and has a name afterwards."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import User
from tiny_models import lines

JOB = """name = "night"
[input]
path = "texts.jsonl"
[target]
model = {model}
[[stages]]
kind = "pretrain"
steps = 40
checkpoint_seconds = 0.0
tokens_per_step = 128
warmup = 2
lessons = [{{ tokens = 16, ratio = 2.0, share = 1.0 }}]
held_out = 0.2
[stages.encoder]
rank = 4
alpha = 8.0
"""


@pytest.fixture
def prepared(user: User, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    user.write("icae.toml", JOB.format(model=json.dumps(str(tiny_model))))
    rows = [{"id": f"t{at}", "text": "\n".join(lines()[at * 6 : at * 6 + 6])} for at in range(16)]
    user.write("texts.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, {"id": "short", "text": "short"}]))
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(user.folder / "cache"))
    return user


def steps_of(user: User) -> list[str]:
    return sorted(path.name for path in user.folder.glob("o/night-*/pretrain/checkpoints/step-*"))


def killed(user: User, *words: str) -> None:
    """The command, without a chance to say goodbye once there are two checkpoints."""
    running = subprocess.Popen(
        user.command(*words), cwd=user.folder, env=user.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(steps_of(user)) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait(60)


def test_a_killed_training_goes_on_and_its_encoder_has_the_name_of_its_job(prepared: User, tiny_model: Path) -> None:
    words = "icae", "pretrain", "icae.toml", "-o", "o"
    dry = prepared.says(*words, "--dry-run")
    assert dry.code == 0 and not list(prepared.folder.glob("o/*"))
    killed(prepared, *words)
    assert steps_of(prepared)[0] > "step-00000000"
    ended = prepared.says(*words, "--json")
    assert ended.code == 0, ended.err
    assert [job["state"] for job in ended.json["jobs"]] == ["done"]
    encoder = ended.json["encoder"]
    assert (encoder["name"], encoder["base"], encoder["tokens"], encoder["slots"]) == ("night", str(tiny_model), 16, 8)
    assert {path.name for path in Path(encoder["folder"]).iterdir()} == {
        "encoder.safetensors", "contextmill.json", "curve.parquet",
    }  # fmt: skip
    assert pq.read_table(Path(encoder["folder"]) / "curve.parquet")["step"].to_pylist() == list(range(40))
    (data,) = prepared.folder.glob("o/night-*/data")
    rows = pq.read_table(data).to_pylist()
    assert len(rows) == 16 and sum(row["split"] == "held_out" for row in rows) == encoder["texts"] > 0

    again = prepared.says(*words)
    assert again.code == 0 and "nothing is done twice" in again.out and "16 tokens in 8 slots" in again.out
    assert "memory slots for" in prepared.says("models").out.replace("\n", " ")
    evaluated = prepared.says("icae", "evaluate", "night", "-t", "prose=texts.jsonl", "--rows", "4", "--json")
    assert evaluated.code == 0, evaluated.err
    assert {one["kind"] for one in evaluated.json["repeated"]} == {"prose", "numbers", "patterned", "random"}
    assert [(one["tokens"], one["slots"]) for one in evaluated.json["continued"]] == [(16, 8)]
    assert [one["form"] for one in evaluated.json["stored"]] == ["float16", "int8", "int4"] * 4
    prose = "-t", "prose=texts.jsonl", "--kind", "prose"
    few = "icae", "evaluate", "night", *prose, "--rows", "2", "--precision", "float16"
    fitted, plain = (prepared.says(*few, "--refine", steps, "--json") for steps in ("6", "0"))
    assert (fitted.json["refine"], plain.json["refine"]) == (6, 0)
    now, was = (one.json["repeated"][0]["nats"]["value"] for one in (fitted, plain))
    assert now < was and fitted.json["continued"] != plain.json["continued"]
    repeated = [
        prepared.says("icae", "reconstruct", "night", "texts.jsonl", "--json", *more)
        for more in ([], ["--refine", "6"], ["--refine", "6", "--continuations", "2"])
    ]
    assert [one.code for one in repeated] == [0, 0, 0] and len({json.dumps(one.json) for one in repeated}) == 3
    both = prepared.says(*few, "--refine", "6", "--continuations", "2", "--json")
    assert (both.json["refine"], both.json["continuations"]) == (6, 2)
    assert both.json["continued"] not in (fitted.json["continued"], plain.json["continued"])
    alone = prepared.says(*few, "--continuations", "2")
    assert alone.code == 2 and "say --refine, in how many steps" in " ".join(alone.err.split())
    odd = prepared.says("icae", "evaluate", "night", "--precision", "int2")
    assert odd.code == 2 and "--precision int2: float16, int8, int8/32, int4, int4/32" in " ".join(odd.err.split())
    evaluating = "icae", "evaluate", "night", "--rows", "2", "--html", "no/night.html", "-t"
    told = prepared.says(*evaluating, "prose=texts.jsonl")
    assert told.code == 1 and "no/night.html cannot be written (No such file" in " ".join(told.err.split())
    assert "repeated from slots" not in told.out, "nothing is measured first"
    (prepared.folder / "cache/models/encoders/night/curve.parquet").unlink()
    cut = prepared.says(*evaluating[:-2], "night.html", "-t", "prose=texts.jsonl")
    assert cut.code == 1 and "curve.parquet is missing; make the encoder again" in " ".join(cut.err.split())
    assert "repeated from slots" not in cut.out and not (prepared.folder / "night.html").exists()
    named = prepared.says(*evaluating, "numbers=texts.jsonl")
    assert named.code == 2 and "call yours otherwise" in " ".join(named.err.split())
    taken = prepared.says(*words, "--set", "stages.0.steps=4")
    assert taken.code == 1 and "another encoder is called night already" in " ".join(taken.err.split())
    other = prepared.says(*words, "--set", "stages.0.steps=4", "--replace")
    assert other.code == 0, other.err


def test_a_pretrained_encoder_is_taught_to_answer(prepared: User, tiny_model: Path) -> None:
    begun = prepared.says("icae", "pretrain", "icae.toml", "-o", "o", "--set", "stages.0.steps=4")
    assert begun.code == 0, begun.err
    asked = JOB.replace('"night"', '"answers"').replace('"pretrain"', '"finetune"\nbegin = "night"\nmax_new_tokens = 4')
    asked = asked.replace("tokens_per_step = 128", "rows_per_step = 4").replace("texts.jsonl", "rows.jsonl")
    asked = asked.replace("[target]", '[input.columns]\ncontexts = "input"\nquestion = "prompt"\n[target]')
    prepared.write("answers.toml", asked.format(model=json.dumps(str(tiny_model))))
    rows = [
        {"input": text, "prompt": question, "answer": f"{number} of them"}
        for number, text in enumerate(dict.fromkeys(lines()[:40]))
        for question in ("How many?", "What number?")
    ]
    prepared.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, {"input": "x", "prompt": "y"}]))
    words = "icae", "finetune", "answers.toml", "-o", "o", "--set", "stages.0.steps=6"
    ended = prepared.says(*words, "--json")
    assert ended.code == 0, ended.err
    encoder = ended.json["encoder"]
    assert (encoder["name"], encoder["tokens"], encoder["slots"]) == ("answers", 16, 8)
    assert encoder["answers"]["rows"] == encoder["texts"] > 0 and len(encoder["answers"]["nats"]) == 4
    (data,) = prepared.folder.glob("o/answers-*/data")
    assert len(pq.read_table(data)) == len(rows)
    again = prepared.says(*words)
    assert again.code == 0 and "nothing is done twice" in again.out and "held-out answers, " in again.out
    assert "answers" in prepared.says("models").out
    wrong = prepared.says("icae", "finetune", "icae.toml")
    assert wrong.code == 2 and 'one stage of kind = "finetune" is wanted here, not pretrain' in wrong.err


def test_what_is_wrong_is_said(prepared: User) -> None:
    prepared.write("one.jsonl", json.dumps({"text": "\n".join(lines()[:6])}) + "\n")
    for words, code, said in (
        (["--set", 'stages=[{kind="copy"}]'], 2, 'one stage of kind = "pretrain" is wanted here, not copy'),
        (["--set", "stages.0.step=4"], 2, "--set stages.0.step: unknown key; did you mean steps?"),
        (["--set", "stages.0.encoder.ranks=4"], 2, "did you mean rank?"),
        (["--set", "stages.0.lessons.0.tokens=4000"], 2, "raise ratio or encoder.slots"),
        (
            ["--set", 'stages.0.encoder.targets=["nowhere"]'],
            1,
            "no linear layer is called nowhere; there are down_proj",
        ),
        (["--set", "stages.0.begin=night"], 2, "cannot take its name"),
        (["--set", "stages.0.begin=nowhere"], 1, "no encoder 'nowhere'"),
        (["-i", "one.jsonl"], 1, "at least two different texts of 16 tokens are needed"),
    ):
        ended = prepared.says("icae", "pretrain", "icae.toml", "-o", "o", *words)
        assert (ended.code, said in " ".join((ended.err + ended.out).split())) == (code, True), ended.err + ended.out
