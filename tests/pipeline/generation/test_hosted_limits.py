"""Rates, retries and deadlines: how a hosted endpoint is treated, and when it is given up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hosted_rig import JOB, documents, generator, results, rows, run_with, same_bill, start_worker
from openai_server import FakeOpenAI, Served
from servers import free_port
from sqlalchemy import Engine

from pipeline.generation import endpoint, retries, shard
from pipeline.generation.endpoint import code_of
from pipeline.generation.pacing import Window
from pipeline.generation.retries import Failure, Patience, retry_after
from pipeline.stages import Halt, Refusal
from pipeline.storage.requests import SqlLedger


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("Sun, 22 Nov 2026 16:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 17:00:30 +0100", 30.0),
        ("Sun Nov 22 16:00:30 2026", 30.0),  # the asctime form, still allowed
        ("Sun, 22 Nov 2026 15:00:00 GMT", 0.0),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, datetime(2026, 11, 22, 16, 0, 0, tzinfo=UTC)) == seconds


def test_waits_are_full_jitter_under_a_doubling_ceiling() -> None:
    for tries in range(12):
        waits = []
        for _ in range(300):
            patience = Patience(1000.0, 100, tries=tries)
            waits.append(patience.wait(Failure("server_error", "")) or 0.0)
        ceiling = min(30.0, 0.5 * 2**tries)
        assert 0.8 * ceiling < max(waits) <= ceiling
        assert min(waits) < 0.2 * ceiling


def test_what_the_endpoint_asks_for_is_waited_unless_the_deadline_is_nearer() -> None:
    asked = Failure("rate_limited", "", retry_after=7.0)
    assert 7.0 <= (Patience(60.0, 5).wait(asked) or 0.0) <= 8.0
    assert Patience(5.0, 5).wait(asked) is None


def test_only_what_another_try_may_mend_is_tried_again() -> None:
    for code in ("prompt_too_long", "endpoint_error", "refused"):
        assert Patience(60.0, 5).wait(Failure(code, "")) is None
    limited, broken = Patience(60.0, 2), Patience(60.0, 2)
    assert all(limited.wait(Failure("rate_limited", "")) is not None for _ in range(4))
    assert [broken.wait(Failure("server_error", "")) is None for _ in range(3)] == [False, False, True]


def test_the_window_halves_on_a_limit_and_widens_with_answers() -> None:
    async def act() -> None:
        window = Window(16)
        sent = time.monotonic()
        window.limited(sent)
        window.limited(sent)  # in flight at the same time: one piece of news, not two
        assert window.limit == 8
        window.limited(time.monotonic() + 0.001)
        assert window.limit == 4
        for _ in range(5):
            window.answered()
        assert 5 <= window.limit < 5.3
        for _ in range(1000):
            window.answered()
        assert window.limit == 16
        for _ in range(20):
            await asyncio.sleep(0.001)
            window.limited(time.monotonic())
        assert window.limit == 1

    asyncio.run(act())


def test_the_window_holds_back_calls() -> None:
    async def act() -> int:
        window, now, most = Window(8), 0, 0
        window.limit = 3.0

        async def call() -> None:
            nonlocal now, most
            async with window.slot():
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.01)
                now -= 1

        await asyncio.gather(*(call() for _ in range(20)))
        return most

    assert asyncio.run(act()) == 3


def taken(engine: Engine, name: str, per_minute: float, seconds: float) -> float:
    """Take the slots of the next ``seconds`` of a rate. When the next one lies, as ``time.monotonic`` has it.

    No busy machine makes a call come before its slot: a first one that comes late leaves the others where they are.
    """
    began = time.monotonic()
    SqlLedger(engine, JOB, 0, 1).pace(name, seconds * per_minute / 60, per_minute)
    return began + seconds


def test_two_workers_share_one_rate(engine: Engine) -> None:
    server = FakeOpenAI()
    with Served(server) as url:
        first, began = taken(engine, "requests", 600, 5.0), time.monotonic()
        workers = [start_worker(str(engine.url), url, 20 * n, 20, requests_per_minute=600) for n in range(2)]
        assert [json.loads(worker.communicate()[0]) for worker in workers] == [{"done": 20}] * 2
        seconds = time.monotonic() - began
    arrivals = sorted(server.arrivals)
    assert len(arrivals) == 40
    for number, arrival in enumerate(arrivals):  # a tenth of a second apart, whoever sends
        assert arrival > first + 0.1 * number - 0.01
    assert seconds < 120


def test_tokens_a_minute_are_paced_too(engine: Engine) -> None:
    server = FakeOpenAI()
    with Served(server) as url:
        first = taken(engine, "tokens", 15_600, 1.0)
        # about 130 tokens a call by the bound (bytes and frame), at 260 a second
        results(generator(url, tokens_per_minute=15_600, concurrency=8).run(documents(7), run_with(engine)))
    assert 2.0 < server.arrivals[-1] - first < 30.0


def test_waiting_for_a_slot_does_not_use_up_a_documents_time(engine: Engine) -> None:
    with Served(FakeOpenAI()) as url:
        taken(engine, "requests", 600, 5.0)  # the first one's slot lies 5 s ahead
        asked = generator(url, requests_per_minute=600, deadline_seconds=4.0, concurrency=4)
        results(asked.run(documents(4), run_with(engine)))


def test_an_endpoint_that_limits_for_longer_than_the_deadline_leaves_the_document_to_another_day(
    engine: Engine,
) -> None:
    with Served(FakeOpenAI(faults={"429": 1.0})) as url:
        [made] = generator(url, deadline_seconds=3.0).run(documents(1), run_with(engine))
    assert isinstance(made, Refusal) and made.code == "rate_limited" and made.dead
    assert "requests_per_minute" in made.reason


def test_a_deadline_covers_all_tries_and_a_slow_answer_may_be_billed(engine: Engine) -> None:
    server = FakeOpenAI(seconds=30.0)
    with Served(server) as url:
        began = time.monotonic()
        [made] = generator(url, deadline_seconds=3.0).run(documents(1), run_with(engine))
        assert time.monotonic() - began < 20.0
    assert isinstance(made, Refusal) and made.code == "no_answer" and made.dead
    assert len(same_bill(engine, server.bill)) == 1


def test_an_unreachable_endpoint_stops_the_job_and_is_named(engine: Engine) -> None:
    began = time.monotonic()
    with pytest.raises(Halt, match=r"127\.0\.0\.1:\d+/v1 cannot be reached: connection refused.*Check base_url"):
        generator(_closed(), deadline_seconds=1.0).run(documents(5), run_with(engine))
    assert time.monotonic() - began < 30.0
    assert {row.state for row in rows(engine).values()} == {"failed"}  # never sent, never billed


def _closed() -> str:
    return f"http://127.0.0.1:{free_port()}/v1"


def test_a_host_nobody_knows_is_called_that(engine: Engine) -> None:
    with pytest.raises(Halt, match=r"nowhere\.invalid/v1 cannot be reached: unknown host"):
        generator("http://nowhere.invalid/v1", deadline_seconds=0.5).run(documents(1), run_with(engine))


def test_a_host_that_does_not_speak_is_called_that(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("random.uniform", lambda _, most: most)  # another try, at 0.8 s, would have no time to connect
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with contextlib.ExitStack() as held:
            for _ in range(2):  # a queue without room: the next caller's greeting is left unanswered
                held.enter_context(contextlib.closing(_caller(address)))
            url = f"http://127.0.0.1:{address[1]}/v1"
            with pytest.raises(Halt, match=r"cannot be reached: no connection within"):
                generator(url, deadline_seconds=1.0).run(documents(1), run_with(engine))
    assert {row.state for row in rows(engine).values()} == {"failed"}  # never sent, never billed


def _caller(address: tuple[str, int]) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.connect_ex(address)
    return made


def test_an_address_that_never_answered_is_given_up_early(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has answered this job before is given its whole deadline."""
    monkeypatch.setattr(shard, "FIRST_CONTACT_SECONDS", 1.0)
    monkeypatch.setattr("random.uniform", lambda _, most: most)  # tries at 0, 0.5, 1.5 and 3.5 s
    began = time.monotonic()
    with pytest.raises(Halt, match="cannot be reached"):
        generator(_closed(), deadline_seconds=60.0).run(documents(5), run_with(engine))
    assert 1.0 <= time.monotonic() - began < 30.0
    with Served(FakeOpenAI(), free_port()) as url:
        results(generator(url).run(documents(1), run_with(engine)))
    began = time.monotonic()
    with pytest.raises(Halt, match="cannot be reached"):
        generator(url, deadline_seconds=6.0).run(documents(5), run_with(engine))
    assert time.monotonic() - began >= 3.5


def test_an_endpoint_that_comes_up_late_is_waited_for(engine: Engine) -> None:
    server, port = FakeOpenAI(), free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with ExitStack() as serving:
        timer = threading.Timer(1.0, lambda: serving.enter_context(Served(server, port)))
        timer.start()
        results(generator(url, max_retries=0, deadline_seconds=30).run(documents(3), run_with(engine)))
        timer.join()
    assert not same_bill(engine, server.bill)


def test_many_failures_in_a_row_are_the_endpoints_fault(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    server = FakeOpenAI(faults={"500": 1.0})
    with Served(server) as url, pytest.raises(Halt, match=r"10 documents in a row failed.*the model is on fire"):
        generator(url, max_retries=1).run(documents(200), run_with(engine))
    assert len(server.arrivals) < 2 * (shard.FAILED_IN_A_ROW + 8) + 1


def test_a_row_of_failures_may_be_longer_than_a_shard(engine: Engine) -> None:
    """Dead one shard after the other, a large corpus would be dead as a whole; after a halt the row begins anew."""
    with Served(FakeOpenAI(faults={"500": 1.0})) as url:
        asked = generator(url, max_retries=0, concurrency=1)
        for start in (0, 4):
            assert all(isinstance(made, Refusal) for made in asked.run(documents(4, start), run_with(engine)))
        with pytest.raises(Halt, match="10 documents in a row failed"):
            asked.run(documents(4, 8), run_with(engine))
        assert all(isinstance(made, Refusal) for made in asked.run(documents(4, 8), run_with(engine, attempt=2)))


def test_a_few_failures_are_those_documents_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    server = FakeOpenAI(script=deque(["500"] * 9))
    with Served(server) as url:
        made = generator(url, max_retries=0, concurrency=1).run(documents(20), run_with(engine))
    refused = [outcome for outcome in made if isinstance(outcome, Refusal)]
    assert [(refusal.code, refusal.dead) for refusal in refused] == [("server_error", True)] * 9


@pytest.mark.parametrize(("fault", "told"), [("quota", "run out of credit.*balance"), ("404", "Check base_url")])
def test_what_no_document_can_pass_stops_the_job(engine: Engine, fault: str, told: str) -> None:
    server = FakeOpenAI(faults={fault: 1.0})
    with Served(server) as url, pytest.raises(Halt, match=told):
        generator(url, concurrency=2).run(documents(50), run_with(engine))
    assert len(server.arrivals) <= 2


@pytest.mark.parametrize(
    ("status", "body", "text", "code"),
    [
        (400, {"code": "context_length_exceeded", "param": "messages"}, "too much", "prompt_too_long"),
        (400, {}, "This model's maximum context length is 4096 tokens. However, ...", "prompt_too_long"),
        (400, {}, "the request exceeds the available context size, try increasing it", "prompt_too_long"),
        (400, {}, "prompt is too long: 210000 tokens > 200000 maximum", "prompt_too_long"),
        (413, {}, "request entity too large", "prompt_too_long"),
        (400, {"param": "temperature", "code": "unsupported_value"}, "only the default (1) is supported", "refused"),
        (400, {"param": "max_tokens"}, "at most 4096 completion tokens", "refused"),
        (400, {"param": ["odd"]}, "something else", "endpoint_error"),
        (422, {}, "unprocessable", "endpoint_error"),
        (301, {}, "moved", "refused"),
        (402, {}, "pay first", "refused"),
        (403, {}, "no such permission", "refused"),
        (404, {}, "no such model", "refused"),
        (408, {}, "", "server_error"),
        (409, {}, "", "server_error"),
        (429, {}, "", "rate_limited"),
        (429, {"code": "rate_limit_exceeded"}, "", "rate_limited"),
        (500, {}, "", "server_error"),
        (529, {}, "overloaded", "server_error"),
    ],
)
def test_what_an_error_status_means(status: int, body: dict[str, Any], text: str, code: str) -> None:
    assert code_of(status, body, f"HTTP {status}: {text}") == code
