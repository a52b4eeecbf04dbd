"""The hosted path against a real OpenAI-compatible server: ``transformers serve`` with the default model."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosted_rig import documents, generator, results, rows, run_with, wait_for
from servers import free_port
from sqlalchemy import Engine

from pipeline.models import load_tokenizer, resolve
from schemas.base import DEFAULT_MODEL
from schemas.document import Document, PromptParts

pytestmark = pytest.mark.model
SLOW: dict[str, Any] = {"deadline_seconds": 250}  # two cores may have several such models at work


@pytest.fixture(scope="module")
def served(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model name of a running server; a process of its own, ended by its id."""
    folder = str(resolve(DEFAULT_MODEL).folder)
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    words = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        command = [str(Path(sys.executable).with_name("transformers")), *words]
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:

        def healthy() -> bool:
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as reply:
                    return bool(reply.status == 200)
            except OSError:
                return False

        wait_for(healthy, 240)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_a_chat_is_answered_and_its_tokens_are_the_models_own(served: tuple[str, str], engine: Engine) -> None:
    url, model = served
    parts = PromptParts(question="What is the capital of France? Answer in one word.")
    document = Document(0, "france", parts, parts.content_hash())
    asked = generator(url, model=model, max_new_tokens=24, concurrency=1, system="You answer briefly.", **SLOW)
    [made] = results(asked.run([document], run_with(engine)))
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    messages = [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": parts.question},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert made.tokens_in == len(tokenizer(prompt)["input_ids"])
    assert "Paris" in made.fields["generated"]
    assert made.fields["finish_reason"] == "stop"
    assert 0 < made.tokens_out < 24
    assert made.cost_microusd is None  # nobody sells this model under this name
    [row] = rows(engine, "done").values()
    assert (row.tokens_in, row.tokens_out) == (made.tokens_in, made.tokens_out)


def test_plain_completions_run_to_their_length_and_come_in_order(served: tuple[str, str], engine: Engine) -> None:
    url, model = served
    asked = generator(url, model=model, chat=False, max_new_tokens=8, concurrency=2, **SLOW)
    made = results(asked.run(documents(3), run_with(engine)))
    assert [(result.tokens_out, result.fields["finish_reason"]) for result in made] == [(8, "length")] * 3
    again = results(asked.run(documents(3), run_with(engine, attempt=2)))
    assert [result.fields["generated"] for result in again] == [result.fields["generated"] for result in made]
    assert len(rows(engine)) == 3


def test_a_stop_string_the_server_leaves_in_is_cut_off(served: tuple[str, str], engine: Engine) -> None:
    url, model = served
    parts = PromptParts(question="Count: one, two, three, four, five,")
    document = Document(0, "count", parts, parts.content_hash())
    asked = generator(url, model=model, chat=False, max_new_tokens=20, concurrency=1, stop=["eight"], **SLOW)
    [made] = results(asked.run([document], run_with(engine)))
    assert "six" in made.fields["generated"] and "eight" not in made.fields["generated"]
    assert made.fields["finish_reason"] == "stop"
