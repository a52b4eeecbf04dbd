"""`contextmill align` as a user has it: killed and run again, and with a budget that buys some of the answers."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from command import User
from openai_server import FakeOpenAI, Served

from pipeline.models import resolve
from schemas.settings import Settings

FILE = """name = "mine"
[input]
path = "prompts.jsonl"
[align]
model = {model}
epochs = {epochs}
documents_per_step = 4
checkpoint_seconds = 0.0
[[targets]]
model = {target}
[targets.answers]
{answers}
"""


def prepared(user: User, model: Path, answers: str, target: str = "", epochs: int = 1) -> None:
    texts = {"model": json.dumps(str(model)), "target": json.dumps(target or str(model))}
    user.write("align.toml", FILE.format(**texts, answers=answers, epochs=epochs))
    rows = [{"id": f"q{number}", "text": f"What is {number} plus {number * 3}?"} for number in range(16)]
    user.write("prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def steps_of(user: User) -> list[str]:
    return sorted(path.name for path in user.folder.glob("o/mine-*/align/checkpoints/step-*"))


def test_a_killed_alignment_goes_on_and_its_adapter_has_a_name(user: User, tiny_model: Path) -> None:
    prepared(user, tiny_model, "max_new_tokens = 8", epochs=15)
    cache = str(user.folder / "cache")
    words = "align", "align.toml", "-o", "o"
    running = subprocess.Popen(
        user.command(*words), cwd=user.folder, env=user.environment(CONTEXTMILL_CACHE_DIR=cache),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(steps_of(user)) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait(60)
    assert steps_of(user)[0] > "step-00000000"
    assert len(list(user.folder.glob("o/mine-*/data"))) == 1, "the answers are there, the training is under way"
    ended = user.says(*words, "--json", CONTEXTMILL_CACHE_DIR=cache)
    assert ended.code == 0, ended.err
    said = ended.json
    assert [job["state"] for job in said["jobs"]] == ["done", "done"]
    assert said["adapter"]["model"] == f"{tiny_model}+mine"
    assert said["adapter"]["nll_after"] < said["adapter"]["nll_before"]
    assert resolve(f"{tiny_model}+mine", Settings(cache_dir=Path(cache))).adapter is not None
    again = user.says(*words, CONTEXTMILL_CACHE_DIR=cache)
    assert again.code == 0 and f'model = "{tiny_model}+mine"' in again.out
    other = user.says(*words, "--set", "align.epochs=2", CONTEXTMILL_CACHE_DIR=cache)
    assert other.code == 1 and "another adapter is called mine already" in other.err


def test_a_budget_buys_some_answers_and_they_are_learned_from(user: User, tiny_model: Path) -> None:
    """Without ``--partial`` the command ends with the budget, in exit code 4."""
    server = FakeOpenAI()
    words = "align", "align.toml", "-o", "o", "--json"
    cache = str(user.folder / "cache")
    with Served(server) as url:
        answers = f'backend = "openai"\nbase_url = "{url}"\nmax_new_tokens = 8\nconcurrency = 1\nbudget_usd = "0.006"'
        prepared(user, tiny_model, f"{answers}\nseconds_per_shard = 0.01", target="gpt-4")
        first = user.says(*words, CONTEXTMILL_CACHE_DIR=cache, CONTEXTMILL_API_KEY="k")
        second = user.says(*words, "--partial", CONTEXTMILL_CACHE_DIR=cache, CONTEXTMILL_API_KEY="k")
    assert first.code == 4 and first.json["adapter"] is None
    assert second.code == 0, second.err
    answered, trained = second.json["jobs"]
    assert answered["stop_code"] == "budget" and trained["state"] == "done"
    spent = sum(line["cost_microusd"] for line in server.bill)
    assert 0 < spent <= 6_000
    assert pairs(user) == len(server.bill) < 16


def pairs(user: User) -> int:
    (path,) = user.folder.glob("o/mine-pairs-*/pairs.parquet")
    metadata: Any = pq.read_metadata(path)
    return int(metadata.num_rows)
