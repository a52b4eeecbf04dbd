"""The ledger of paid calls on both databases: states, money and pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hosted_rig import JOB, new_job, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, select, update

from pipeline.accounting.queries import open_requests, requests
from pipeline.generation.ledger import Bill, Grant
from pipeline.storage.requests import SqlLedger, ensure_budget, forget_responses
from pipeline.storage.sql import open_engine
from schemas.tables import Budget, Job, Pace, Request

ACTS = ["send", "done", "failed", "lost", "recall"]
ANSWER: dict[str, Any] = {"choices": [{"text": "ja \u0000 漢"}], "usage": {"prompt_tokens": 7}}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = open_engine(database_url)
    new_job(made)
    yield made
    made.dispose()


@pytest.fixture
def ledger(engine: Engine) -> SqlLedger:
    return SqlLedger(engine, JOB, 1, 1)


def bill(cost: int | None) -> Bill:
    return Bill(7, 2, 3, cost, "table:x")


def money(engine: Engine) -> tuple[int, int]:
    """Reserved, spent."""
    with engine.connect() as connection:
        row = connection.execute(select(Budget).where(Budget.job_id == JOB)).one()
    return row.reserved_microusd, row.spent_microusd


def test_an_answer_comes_back_as_it_was_stored(engine: Engine, ledger: SqlLedger) -> None:
    assert ledger.send("a", 4, 100, "table:x") is Grant.SENT
    ledger.done("a", ANSWER, bill(60))
    paid = SqlLedger(engine, JOB, 1, 2).recall([3, 4, 5])
    assert set(paid) == {4}
    assert paid[4].response == ANSWER and paid[4].bill == bill(60) and 0 <= paid[4].seconds < 5
    assert rows(engine)["a"].attempt == 1


def test_only_this_stages_answers_of_these_documents_come_back(engine: Engine, ledger: SqlLedger) -> None:
    for call_id, seq in (("a", 4), ("b", 6)):
        ledger.send(call_id, seq, 100, None)
        ledger.done(call_id, ANSWER, bill(60))
    assert set(ledger.recall([3, 5, 7])) == set()
    assert set(ledger.recall([4])) == {4}
    assert ledger.recall([]) == {}
    assert SqlLedger(engine, JOB, 0, 1).recall([4, 5, 6]) == {}


def test_what_an_earlier_attempt_called_for_is_known(engine: Engine, ledger: SqlLedger) -> None:
    for call_id, seq in (("a", 4), ("b", 5), ("c", 7)):
        ledger.send(call_id, seq, None, None)
    ledger.failed("a", "HTTP 500")
    again = SqlLedger(engine, JOB, 1, 2)
    again.send("d", 6, None, None)
    assert again.tried([4, 5, 6]) == {4, 5}
    assert ledger.tried([4, 5, 6]) == SqlLedger(engine, JOB, 2, 2).tried([4]) == again.tried([]) == set()


def test_calls_left_by_a_killed_attempt_are_lost_and_spent(engine: Engine, ledger: SqlLedger) -> None:
    ensure_budget(engine, JOB, 1_000)
    ledger.send("a", 4, 100, None)
    ledger.send("elsewhere", 9, 50, None)  # another shard's: its worker may live
    assert money(engine) == (150, 0)
    assert SqlLedger(engine, JOB, 1, 2).recall([3, 4, 5]) == {}
    assert money(engine) == (50, 100)
    assert {call_id: row.state for call_id, row in rows(engine).items()} == {"a": "lost", "elsewhere": "sent"}
    lost = rows(engine)["a"]
    assert lost.reserved_microusd == 100 and lost.seq == 4 and "worker ended" in lost.error


def test_a_worker_taken_for_dead_may_still_put_its_call_right(engine: Engine, ledger: SqlLedger) -> None:
    ensure_budget(engine, JOB, 1_000)
    ledger.send("a", 4, 100, None)
    ledger.send("b", 5, 100, None)
    SqlLedger(engine, JOB, 1, 2).recall([4, 5])
    assert money(engine) == (0, 200)
    ledger.done("a", ANSWER, bill(60))
    ledger.failed("b", "429")
    assert money(engine) == (0, 60)
    assert not rows(engine, "lost", "sent")


@pytest.mark.parametrize("end", ["done", "failed", "lost"])
def test_ending_a_call_twice_moves_its_money_once(engine: Engine, ledger: SqlLedger, end: str) -> None:
    ensure_budget(engine, JOB, 1_000)
    acts: dict[str, Callable[[], None]] = {
        "done": lambda: ledger.done("a", ANSWER, bill(60)),
        "failed": lambda: ledger.failed("a", "500"),
        "lost": lambda: ledger.lost("a", "cut"),
    }
    assert [ledger.send("a", 4, 100, None) for _ in range(2)] == [Grant.SENT] * 2  # a repeated send neither
    assert money(engine) == (100, 0)
    for _ in range(2):
        acts[end]()
    assert money(engine) == (0, {"done": 60, "failed": 0, "lost": 100}[end])
    for other in acts.values():  # what is known is not unlearned
        other()
    assert money(engine)[1] == {"done": 60, "failed": 0, "lost": 60}[end]


def test_a_call_waits_for_money_in_flight_and_not_for_money_spent(engine: Engine, ledger: SqlLedger) -> None:
    ensure_budget(engine, JOB, 100)
    assert ledger.send("a", 1, 60, None) is Grant.SENT
    assert ledger.send("b", 2, 60, None) is Grant.WAIT
    assert ledger.send("c", 3, 101, None) is Grant.NEVER
    assert ledger.send("d", 4, 40, None) is Grant.SENT  # the last micro-dollar can be spent
    ledger.done("a", ANSWER, bill(30))
    assert ledger.send("b", 2, 60, None) is Grant.WAIT
    ledger.done("d", ANSWER, bill(20))
    assert ledger.send("b", 2, 60, None) is Grant.NEVER
    assert ledger.send("b", 2, 50, None) is Grant.SENT
    assert ledger.money() == (50, 100)
    assert set(rows(engine)) == {"a", "b", "d"}  # a call that was not granted leaves no row


def test_without_a_budget_nothing_is_held_back(engine: Engine, ledger: SqlLedger) -> None:
    assert ledger.money() is None
    assert ledger.send("a", 1, 10**15, None) is Grant.SENT
    assert ledger.send("b", 2, None, None) is Grant.SENT
    ledger.done("a", ANSWER, bill(None))
    ledgers = {call_id: (row.state, row.cost_microusd) for call_id, row in rows(engine).items()}
    assert ledgers == {"a": ("done", None), "b": ("sent", None)}


def test_a_new_limit_keeps_what_is_spent(engine: Engine, ledger: SqlLedger) -> None:
    ensure_budget(engine, JOB, 100)
    ledger.send("a", 1, 100, None)
    ledger.done("a", ANSWER, bill(90))
    ensure_budget(engine, JOB, 500)
    assert ledger.money() == (90, 500)


def test_overdue_calls_expire(engine: Engine, ledger: SqlLedger) -> None:
    ensure_budget(engine, JOB, 1_000)
    for call_id in ("old", "new"):
        ledger.send(call_id, 1, 100, None)
    with engine.begin() as connection:
        connection.execute(update(Request).where(Request.id == "old").values(sent_at=Request.sent_at - 200.0))
    assert ledger.expire(100.0) == 1
    assert {call_id: row.state for call_id, row in rows(engine).items()} == {"old": "lost", "new": "sent"}
    assert money(engine) == (100, 100)


def test_calls_are_summed(engine: Engine, ledger: SqlLedger) -> None:
    for number, cost in enumerate((10, 20, None)):
        ledger.send(f"d{number}", number, 100, None)
        ledger.done(f"d{number}", ANSWER, bill(cost))
    ledger.send("f", 5, 100, None)
    ledger.failed("f", "429")
    ledger.send("l", 6, 70, None)
    ledger.lost("l", "cut")
    ledger.send("s", 7, 80, None)
    with engine.connect() as connection:
        summed = {one.state: (one.calls, one.cost_microusd, one.reserved_microusd) for one in requests(connection, JOB)}
        assert [call.id for call in open_requests(connection, JOB)] == ["l", "s"]
    assert summed == {"done": (3, 30, 300), "failed": (1, 0, 100), "lost": (1, None, 70), "sent": (1, None, 80)}
    assert forget_responses(engine, JOB) == 3
    assert forget_responses(engine, JOB) == 0


def test_slots_of_a_rate_lie_one_after_another_whoever_takes_them(engine: Engine) -> None:
    ledgers = [SqlLedger(engine, JOB, 1, attempt) for attempt in range(4)]
    began = time.monotonic()

    def take(number: int) -> float:
        now = time.monotonic() - began
        return now + ledgers[number % 4].pace("requests", 1, 60)

    with ThreadPoolExecutor(4) as pool:
        slots = sorted(pool.map(take, range(20)))
    spent = time.monotonic() - began
    for number, slot in enumerate(slots):  # one second apart; the first is now
        assert slot == pytest.approx(number, abs=0.2 + spent)


def test_a_rate_left_alone_gives_one_slot_at_once(engine: Engine, ledger: SqlLedger) -> None:
    began = time.monotonic()
    assert ledger.pace("tokens", 500, 1000) == 0.0
    slot = ledger.pace("tokens", 1, 1000)
    assert slot == pytest.approx(30.0, abs=0.5 + time.monotonic() - began)
    assert ledger.pace("requests", 1, 1000) == 0.0  # a rate of its own
    assert SqlLedger(engine, JOB, 0, 1).pace("tokens", 1, 1000) == 0.0  # another stage's
    with engine.begin() as connection:
        connection.execute(update(Pace).values(free_at=Pace.free_at - 1000.0))
    assert [ledger.pace("tokens", 100, 1000) > 0 for _ in range(2)] == [False, True]  # no burst is saved up


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 5)), max_size=25))
def test_reserved_and_spent_are_always_what_the_rows_say(engine: Engine, acts: list[tuple[str, int]]) -> None:
    with engine.begin() as connection:
        for table in (Request, Budget):
            connection.execute(delete(table))
    ensure_budget(engine, JOB, 250)
    ledger = SqlLedger(engine, JOB, 1, 1)
    for act, seq in acts:
        worst, call_id = 20 + 10 * seq, f"c{seq}"
        if act == "send":
            ledger.send(call_id, seq, worst, None)
        elif act == "recall":
            ledger.recall([seq])
        elif call_id in rows(engine):
            ledger.done(call_id, ANSWER, bill(worst - 5)) if act == "done" else getattr(ledger, act)(call_id, "why")
        made = rows(engine).values()
        reserved = sum(row.reserved_microusd for row in made if row.state == "sent")
        spent = sum(row.cost_microusd or 0 for row in made)
        spent += sum(row.reserved_microusd for row in made if row.state == "lost")
        assert money(engine) == (reserved, spent)
        assert reserved + spent <= 250


def test_calls_go_with_their_job(engine: Engine, ledger: SqlLedger) -> None:
    ledger.send("a", 1, 1, None)
    with engine.begin() as connection:
        connection.execute(delete(Job).where(Job.id == JOB))
    assert not rows(engine)


def test_a_busy_database_is_waited_for(engine: Engine, ledger: SqlLedger) -> None:
    """A lock held for two seconds delays the call and does not fail it."""
    ensure_budget(engine, JOB, 100)
    with ThreadPoolExecutor(1) as pool, engine.begin() as connection:
        connection.execute(update(Budget).values(limit_microusd=50))
        granted = pool.submit(ledger.send, "a", 1, 60, None)
        time.sleep(2.0)
        assert not granted.done()
        connection.execute(insert(Pace).values(name="x", free_at=0.0))
        connection.commit()
        assert granted.result() is Grant.NEVER
