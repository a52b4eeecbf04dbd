"""A budget is a hard limit: whoever calls, and however many."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hosted_rig import JOB, documents, generator, new_job, results, rows, run_with, same_bill, start_worker
from openai_server import FakeOpenAI, Served
from sqlalchemy import Engine, select, update

from pipeline.accounting.prices import price_of
from pipeline.generation import shard
from pipeline.generation.bounds import FRAME_TOKENS, TokenBound, price_key, worst_microusd
from pipeline.generation.hosted import check
from pipeline.stages import BudgetReached, Halt
from pipeline.storage.requests import SqlLedger, ensure_budget
from pipeline.storage.sql import open_engine
from schemas.job import TargetSpec
from schemas.tables import Budget, Request


def budget(engine: Engine) -> tuple[int, int, int]:
    """Limit, reserved, spent."""
    with engine.connect() as connection:
        row = connection.execute(select(Budget).where(Budget.job_id == JOB)).one()
    return row.limit_microusd, row.reserved_microusd, row.spent_microusd


def test_four_processes_never_spend_more_than_the_budget(database_url: str) -> None:
    engine = open_engine(database_url)
    new_job(engine)
    limit = 30_000  # micro-dollars: about 45 of the 120 answers
    ensure_budget(engine, JOB, limit)
    server = FakeOpenAI(seconds=0.02, faults={"500": 0.1, "drop_after": 0.03})
    settings = {"budget_usd": "0.03", "concurrency": 5, "max_retries": 20}
    with Served(server) as url:
        workers = [start_worker(database_url, url, 30 * n, 30, **settings) for n in range(4)]
        said = [json.loads(worker.communicate()[0]) for worker in workers]
    assert [answer.get("halt") for answer in said] == ["budget"] * 4, said
    billed = sum(line["cost_microusd"] for line in server.bill)
    held_limit, reserved, spent = budget(engine)
    assert billed <= spent <= held_limit == limit
    assert reserved == 0
    left = min(row.reserved_microusd for row in rows(engine).values())
    assert limit - spent < left + 100  # and it was used up: what is left pays for no other call
    same_bill(engine, server.bill)
    engine.dispose()


def test_money_held_by_calls_in_flight_is_waited_for(engine: Engine) -> None:
    with Served(FakeOpenAI()) as url:
        asked = generator(url)
        [first] = results(asked.run(documents(1), run_with(engine)))
    [held] = [row.reserved_microusd for row in rows(engine).values()]
    assert first.cost_microusd and held > 4 * first.cost_microusd
    # room for one worst case at a time, and for the real cost of all eight
    ensure_budget(engine, JOB, held + 8 * first.cost_microusd + 200)
    server = FakeOpenAI(seconds=0.02)
    with Served(server) as url:
        made = results(generator(url, budget_usd="100", concurrency=8).run(documents(8, start=1), run_with(engine)))
    assert len(made) == 8
    assert server.most_at_once < 8
    assert budget(engine)[1:] == (0, 8 * first.cost_microusd)


def test_a_reached_budget_stops_after_storing_and_a_higher_one_goes_on(engine: Engine) -> None:
    ensure_budget(engine, JOB, 8_000)
    server = FakeOpenAI(seconds=0.02)
    with Served(server) as url:
        with pytest.raises(BudgetReached, match=r"0\.00\d+ of 0\.008000 dollars .* again with a higher budget_usd"):
            generator(url, budget_usd="0.008").run(documents(40), run_with(engine))
        paid = Counter(row.state for row in rows(engine).values())
        assert set(paid) == {"done"} and 0 < paid["done"] < 40
        ensure_budget(engine, JOB, 1_000_000)
        made = results(generator(url, budget_usd="1").run(documents(40), run_with(engine, attempt=2)))
    assert len(made) == 40 == len(server.bill)
    assert not same_bill(engine, server.bill)
    assert budget(engine) == (1_000_000, 0, sum(line["cost_microusd"] for line in server.bill))


def test_a_budget_too_small_for_any_call_buys_none(engine: Engine) -> None:
    ensure_budget(engine, JOB, 100)
    server = FakeOpenAI()
    with Served(server) as url, pytest.raises(BudgetReached):
        generator(url, budget_usd="0.0001", requests_per_minute=1).run(documents(50), run_with(engine))
    assert not server.arrivals


def test_money_a_dead_worker_held_is_counted_as_spent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "EXPIRE_EVERY", 0.2)
    ensure_budget(engine, JOB, 10_000)
    dead = SqlLedger(engine, JOB, 0, 1)
    dead.send("a-call-of-a-worker-that-died", 99, 9_900, None)
    with engine.begin() as connection:
        connection.execute(update(Request).values(sent_at=Request.sent_at - 1000.0))
    with Served(FakeOpenAI()) as url, pytest.raises(BudgetReached):
        generator(url, budget_usd="0.01").run(documents(1), run_with(engine))
    assert budget(engine) == (10_000, 0, 9_900)
    assert [row.id for row in rows(engine, "lost").values()] == ["a-call-of-a-worker-that-died"]


def test_a_worker_waiting_for_money_still_stops(engine: Engine) -> None:
    ensure_budget(engine, JOB, 10_000)
    SqlLedger(engine, JOB, 0, 1).send("in-flight-elsewhere", 99, 9_900, None)
    began = time.monotonic()
    with Served(FakeOpenAI()) as url, pytest.raises(BaseException, match=r"^$") as stopped:
        run = run_with(engine, stopping=lambda: time.monotonic() > began + 0.5)
        generator(url, budget_usd="0.01").run(documents(1), run)
    assert type(stopped.value).__name__ == "Stopped" and time.monotonic() - began < 30.0


def test_a_budget_without_a_price_is_refused_before_any_call(engine: Engine) -> None:
    server = FakeOpenAI()
    with Served(server) as url, pytest.raises(Halt, match=r"no price is known for openai:nobodys-model.*prices = \["):
        generator(url, model="nobodys-model", budget_usd="1").run(documents(1), run_with(engine))
    assert not server.arrivals and not rows(engine)


def test_a_budget_row_holds_whatever_the_spec_says(engine: Engine) -> None:
    ensure_budget(engine, JOB, 100)
    server = FakeOpenAI()
    with Served(server) as url:
        with pytest.raises(BudgetReached):
            generator(url).run(documents(1), run_with(engine))
        with pytest.raises(Halt, match="no price is known"):
            generator(url, model="nobodys-model").run(documents(1), run_with(engine))
    assert not server.arrivals


def test_a_budget_that_nothing_holds_is_an_error(engine: Engine) -> None:
    with Served(FakeOpenAI()) as url, pytest.raises(ValueError, match="ensure_budget"):
        generator(url, budget_usd="1").run(documents(1), run_with(engine))


def test_a_budget_without_an_output_price_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('["mine:half"]\ninput = "1"\ndate = 2026-11-01\n')
    monkeypatch.setenv("CONTEXTMILL_PRICE_TABLE", str(table))
    spec = generator("http://localhost/v1", budget_usd="1").spec
    with pytest.raises(Halt, match="no price is known for mine:half"):
        check(spec, TargetSpec(model="half", prices=("mine:half",)), None)


def test_the_pair_that_names_the_model_prices_it() -> None:
    pairs = ("anthropic:claude-sonnet-4-5", "openrouter:openai/gpt-4o")
    assert price_key(TargetSpec(model="openai/gpt-4o", prices=pairs)) == "openrouter:openai/gpt-4o"
    assert price_key(TargetSpec(model="gpt-4o", prices=pairs)) == "openai:gpt-4o"


def test_bytes_bound_the_tokens_of_any_text(tiny_model: Path) -> None:
    from pipeline.models import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model))
    own, stand_in, none = TokenBound(tokenizer, own=True), TokenBound(tokenizer, own=False), TokenBound(None, own=False)
    for text in ("", "apples", "Äpfel und 漢字 und 🍎", "{}[]();\n\t" * 50, "\u0000\u202e"):
        count = len(tokenizer(text)["input_ids"])
        assert own.most(text) == count + FRAME_TOKENS <= stand_in.most(text) == none.most(text)
        assert stand_in.likely(text) == count + FRAME_TOKENS


def test_the_worst_case_covers_a_cache_that_costs_extra() -> None:
    price = price_of("anthropic:claude-sonnet-4-5")  # 3 dollars a million, 3.75 for what is written to the cache
    assert price
    assert worst_microusd(price, 1000, 0) == 3750
    assert worst_microusd(None, 1000, 0) is None
