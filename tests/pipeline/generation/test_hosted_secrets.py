"""The key stays where it came from: the environment."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
from hosted_rig import documents, generator, results, rows, run_with
from openai_server import FakeOpenAI, Served, reply
from pydantic import SecretStr, ValidationError
from sqlalchemy import Engine

from pipeline.generation.hosted import HostedGenerator, check
from pipeline.stages import Halt, Run
from schemas.job import JobSpec, TargetSpec
from schemas.stage import GenerateSpec

KEY = "sk-live-T0p/Secret+8261"


def _stored(folder: Path) -> bytes:
    stored = b"".join(path.read_bytes() for path in folder.glob("contextmill.db*"))
    assert b"[key]" in stored  # the place where a key would be found
    return stored


def test_a_wrong_key_stops_the_job_and_is_not_repeated(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server = FakeOpenAI(api_key="another")  # refuses, and says what it was sent
    caplog.set_level(logging.DEBUG)
    with Served(server) as url, pytest.raises(Halt, match="CONTEXTMILL_API_KEY") as halt:
        generator(url, key=KEY, concurrency=4).run(documents(50), run_with(engine))
    assert "Incorrect API key provided: Bearer [key]" in str(halt.value)
    assert len(server.arrivals) <= 4  # not one rejection per document
    told = "".join(traceback.format_exception(halt.value)) + repr(halt.value.__dict__) + caplog.text
    assert KEY not in told + "".join(capfd.readouterr())
    assert {row.state for row in rows(engine).values()} == {"failed"}
    assert KEY.encode() not in _stored(tmp_path)


def test_the_right_key_is_used_and_an_answer_that_echoes_it_is_cleaned(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeOpenAI(api_key=KEY)  # every answer carries the Authorization header it met
    caplog.set_level(logging.DEBUG)
    with Served(server) as url:
        asked = generator(url, key=f"  {KEY}\n")
        results(asked.run(documents(3), run_with(engine)))
    assert [row.response["echo"] for row in rows(engine).values()] == ["Bearer [key]"] * 3
    assert KEY.encode() not in _stored(tmp_path)
    assert KEY not in repr(asked) + str(asked) + caplog.text


@pytest.mark.parametrize("fault", ["html", "bad_request", "429"])
def test_no_error_of_the_endpoint_carries_the_key(engine: Engine, tmp_path: Path, fault: str) -> None:
    class Echo(FakeOpenAI):
        async def _answer(self, path: str, headers: dict[str, str], request: object, send: object) -> None:
            said = f"you sent {headers['authorization']} " * 20
            status = {"html": 200, "bad_request": 400, "429": 429}[fault]
            await reply(send, status, {"error": {"message": said}} if status == 400 else said)

    with Served(Echo()) as url:
        [made] = generator(url, key=KEY, max_retries=1, deadline_seconds=1).run(documents(1), run_with(engine))
    assert "[key]" in repr(made) and KEY[:12] not in repr(made)
    assert b"sk-live" not in _stored(tmp_path)


def test_a_placeholder_key_does_not_eat_words(engine: Engine) -> None:
    with Served(FakeOpenAI(api_key="the")) as url:
        [made] = results(generator(url, key="the").run(documents(1), run_with(engine)))
    assert made.fields["generated"].startswith("the answer is")


def test_the_environment_of_the_sdk_neither_lends_a_key_nor_an_address(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-elsewhere-12345")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(Halt, match="set CONTEXTMILL_API_KEY"):
        generator(None).run(documents(1), run_with(engine))
    with Served(FakeOpenAI(api_key="sk-from-elsewhere-12345")) as url, pytest.raises(Halt, match="401"):
        generator(url).run(documents(1), run_with(engine))


@pytest.mark.parametrize("key", ["sk-with a space", "sk-with\nnewline", "sk-wïth-accents", "sk-\x00"])
def test_a_key_no_header_can_carry_is_refused_unseen(key: str) -> None:
    spec = GenerateSpec(kind="generate", backend="openai")
    with pytest.raises(Halt, match="CONTEXTMILL_API_KEY holds characters") as halt:
        check(spec, TargetSpec(model="gpt-4"), SecretStr(key))
    assert key not in str(halt.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@api.example.com/v1",
        "https://hunter2@api.example.com/v1",
        "https://api.example.com/v1?key=hunter2",
        "https://api.example.com/v1#hunter2",
        "ftp://hunter2.example.com",
        "file:///etc/hunter2",
        "hunter2",
        "http://",
        "http://[hunter2/v1",
        "http://host:hunter2/v1",
    ],
)
def test_a_url_with_a_password_or_without_http_is_refused_unrepeated(url: str) -> None:
    job = {
        "input": {"path": "x.jsonl"},
        "stages": [{"kind": "generate", "backend": "openai", "base_url": url}],
    }
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(job)
    assert "hunter2" not in str(refused.value)
    assert "base_url" in str(refused.value)


def test_a_system_message_without_a_chat_is_refused() -> None:
    asked = HostedGenerator(
        GenerateSpec(kind="generate", backend="openai", base_url="http://localhost/v1", chat=False, system="Be brief."),
        TargetSpec(model="gpt-4"),
        None,
    )
    with pytest.raises(Halt, match="chat = true"):
        check(asked.spec, asked.target, None)


def test_no_ledger_no_call() -> None:
    with pytest.raises(ValueError, match="needs a ledger"):
        generator("http://127.0.0.1:9/v1").run(documents(1), Run(None))  # type: ignore[arg-type]


def test_redirects_are_not_followed(engine: Engine) -> None:
    async def elsewhere(scope: object, receive: object, send: object) -> None:
        await reply(send, 307, {}, {"location": "http://127.0.0.1:9/steal"})

    with Served(elsewhere) as url, pytest.raises(Halt, match="HTTP 307"):
        generator(url, key=KEY).run(documents(1), run_with(engine))
