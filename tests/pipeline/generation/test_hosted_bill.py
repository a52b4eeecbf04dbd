"""The endpoint's bill and our ledger agree, call by call, whatever breaks in between."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai_server
import pytest
from hosted_rig import (
    JOB,
    documents,
    generator,
    new_job,
    results,
    rows,
    run_with,
    same_bill,
    start_worker,
    wait_for,
)
from openai_server import FakeOpenAI, Served
from servers import PostgresServer
from sqlalchemy import Engine

from pipeline.generation import shard
from pipeline.stages import Refusal, Stopped
from pipeline.storage.requests import forget_responses
from pipeline.storage.sql import open_engine

TROUBLE = {"429": 0.1, "429-date": 0.05, "500": 0.1, "drop_before": 0.05, "drop_after": 0.05, "cut": 0.05, "502": 0.03}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.retries.FIRST_WAIT", 0.01)


@pytest.mark.parametrize("seed", range(3))
def test_bill_and_ledger_agree_under_errors_and_broken_connections(engine: Engine, seed: int) -> None:
    server = FakeOpenAI(faults=TROUBLE, seed=seed, seconds=0.005)
    with Served(server) as url:
        made = results(generator(url, max_retries=20).run(documents(120), run_with(engine)))
    unseen = same_bill(engine, server.bill)
    ledger = Counter(row.state for row in rows(engine).values())
    spent = sum(row.cost_microusd or 0 for row in rows(engine, "done").values())
    worst = sum(row.reserved_microusd for row in rows(engine, "lost").values())
    billed = sum(line["cost_microusd"] for line in server.bill)
    assert ledger["done"] == 120 and ledger["sent"] == 0 and ledger["failed"] > 0
    assert spent == sum(result.cost_microusd or 0 for result in made)
    assert spent <= billed <= spent + worst
    assert unseen and unseen <= set(rows(engine, "lost"))


@pytest.mark.parametrize(
    ("fault", "state", "billed"),
    [
        ("429", "failed", 0),
        ("500", "failed", 0),
        ("502", "lost", 0),  # a gateway speaks, and cannot know what the model behind it did
        ("drop_before", "lost", 0),
        ("drop_after", "lost", 1),
        ("cut", "lost", 1),
        ("html", "lost", 1),
    ],
)
def test_what_each_broken_call_is_called(engine: Engine, fault: str, state: str, billed: int) -> None:
    server = FakeOpenAI(script=deque([fault]))
    with Served(server) as url:
        results(generator(url).run(documents(1), run_with(engine)))
    [broken] = rows(engine, "failed", "lost").values()
    assert broken.state == state and broken.error and broken.finished_at
    assert broken.cost_microusd == (0 if state == "failed" else None)
    assert len(server.bill) == 1 + billed
    assert len(same_bill(engine, server.bill)) == billed


def test_a_second_attempt_takes_the_answers_that_were_paid_for(engine: Engine) -> None:
    server = FakeOpenAI()
    with Served(server) as url:
        first = results(generator(url).run(documents(10), run_with(engine)))
        again = results(generator(url).run(documents(12), run_with(engine, attempt=2)))
    assert [result.fields["generated"] for result in again[:10]] == [result.fields["generated"] for result in first]
    assert [result.cost_microusd for result in again[:10]] == [result.cost_microusd for result in first]
    assert len(server.bill) == 12
    assert not same_bill(engine, server.bill)


def test_a_refusal_that_was_paid_for_is_not_paid_for_again(engine: Engine) -> None:
    server = FakeOpenAI(script=deque(["filtered"]))
    with Served(server) as url:
        for attempt in (1, 2):
            [made] = generator(url).run(documents(1), run_with(engine, attempt=attempt))
            assert isinstance(made, Refusal) and made.code == "content_filter"
    assert len(server.bill) == 1


def test_answers_can_be_forgotten_and_their_bills_stay(engine: Engine) -> None:
    with Served(FakeOpenAI()) as url:
        generator(url).run(documents(3), run_with(engine))
    before = {call_id: (row.state, row.tokens_out, row.cost_microusd) for call_id, row in rows(engine).items()}
    assert forget_responses(engine, JOB) == 3
    after = {call_id: (row.state, row.tokens_out, row.cost_microusd) for call_id, row in rows(engine).items()}
    assert after == before
    assert all(row.response is None for row in rows(engine).values())


def test_a_killed_worker_pays_twice_at_most_for_what_was_in_flight(engine: Engine) -> None:
    server, concurrency = FakeOpenAI(seconds=0.05), 6
    with Served(server) as url:
        worker = start_worker(str(engine.url), url, 0, 100, concurrency=concurrency)
        wait_for(lambda: len(server.bill) >= 30)
        worker.kill()
        assert not worker.communicate()[0]
        time.sleep(0.2)  # what the server still had in hand
        in_flight, paid = set(rows(engine, "sent")), set(rows(engine, "done"))
        assert 0 < len(in_flight) <= concurrency
        made = results(generator(url, concurrency=concurrency).run(documents(100), run_with(engine, attempt=2)))
    assert len(made) == 100
    assert paid <= set(rows(engine, "done"))
    assert set(rows(engine, "lost")) == in_flight
    assert same_bill(engine, server.bill) <= in_flight
    assert len(server.bill) <= 100 + len(in_flight)


def test_a_stopping_worker_starts_no_call_and_keeps_those_it_began(engine: Engine) -> None:
    server = FakeOpenAI(seconds=0.4)
    with Served(server) as url:
        run = run_with(engine, stopping=lambda: len(server.bill) >= 6)
        with pytest.raises(Stopped):
            generator(url, concurrency=3).run(documents(100), run)
        asked = len(server.arrivals)
        assert 3 <= asked < 30
        assert len(rows(engine, "done")) == asked == len(server.bill)  # nothing lost, nothing paid and not stored
        assert not same_bill(engine, server.bill)
        time.sleep(0.5)
        assert len(server.arrivals) == asked


def test_a_stopping_worker_does_not_wait_for_slow_calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "GRACE_SECONDS", 0.3)
    server = FakeOpenAI(seconds=30.0)
    with Served(server) as url:
        began = time.monotonic()
        with pytest.raises(Stopped):
            generator(url).run(documents(4), run_with(engine, stopping=lambda: len(server.bill) == 4))
        assert time.monotonic() - began < 20.0
    left = set(rows(engine, "sent"))
    assert len(left) == 4 and same_bill(engine, server.bill) == left
    with Served(FakeOpenAI()) as url:
        results(generator(url).run(documents(4), run_with(engine, attempt=2)))
    assert set(rows(engine, "lost")) == left


def test_a_stopping_worker_does_not_sit_out_a_retry(engine: Engine) -> None:
    server = FakeOpenAI(faults={"500": 1.0})
    began = time.monotonic()
    with Served(server) as url, pytest.raises(Stopped):
        asked = generator(url, deadline_seconds=600, max_retries=1000)
        asked.run(documents(2), run_with(engine, stopping=lambda: time.monotonic() > began + 0.5))
    assert time.monotonic() - began < 30.0


def test_a_database_that_goes_away_costs_no_answer(postgres_server: PostgresServer, postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    new_job(engine)
    server = FakeOpenAI(seconds=0.05)
    with Served(server) as url, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(generator(url, concurrency=4).run, documents(80), run_with(engine))
        wait_for(lambda: len(server.bill) >= 20)
        postgres_server.stop()
        time.sleep(2.0)
        postgres_server.start()  # by this thread: the server ends with the thread that started it
        made = results(answering.result(60))
    assert len(made) == 80 == len(server.bill)
    assert not same_bill(engine, server.bill)
    engine.dispose()


def test_the_fake_bills_the_same_as_a_process(engine: Engine, tmp_path: Path) -> None:
    command = [sys.executable, str(openai_server.__file__), "--bill", str(tmp_path / "bill.jsonl")]
    with subprocess.Popen([*command, "--faults", '{"drop_after": 0.2}'], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = json.loads(process.stdout.readline())["port"]
            results(generator(f"http://127.0.0.1:{port}/v1", max_retries=20).run(documents(30), run_with(engine)))
        finally:
            process.terminate()
    bill = [json.loads(line) for line in (tmp_path / "bill.jsonl").read_text().splitlines()]
    assert same_bill(engine, bill)
