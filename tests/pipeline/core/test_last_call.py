"""A job that waits for its endpoint says so: the last failed call stands in its snapshot, and on the screen."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine, insert, update

from pipeline.display import follow, print_snapshot
from pipeline.generation.ledger import Bill
from pipeline.storage.requests import SqlLedger
from pipeline.storage.sql import open_engine
from pipeline.watching import FailedCall, snapshot
from schemas.tables import Base, Job, Request, Shard

URL = "http://127.0.0.1:9/v1"
PAID = Bill(1, None, 1, 1, None)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = open_engine(database_url)
    Base.metadata.create_all(made)
    stages = [{"kind": "copy"}, {"kind": "generate", "backend": "openai", "base_url": URL}]
    job: dict[str, Any] = {"id": "j", "name": "j", "state": "running", "spec": {"stages": stages}, "documents": 24}
    job |= {"spec_hash": "", "input_hash": "", "stage_hashes": [], "output": "", "workers": 1, "created_at": 0.0}
    common = {"job_id": "j", "stage": 1, "attempt_limit": 3}
    with made.begin() as connection:
        connection.execute(insert(Job).values(**job, submitted_at=0.0))
        connection.execute(insert(Shard).values(**common, id="a", start=0, stop=4, state="done"))
        connection.execute(insert(Shard).values(**common, id="b", start=4, stop=24, state="leased"))
    yield made
    made.dispose()


@pytest.fixture
def ledger(engine: Engine) -> SqlLedger:
    return SqlLedger(engine, "j", 1, 1)


def age(engine: Engine, call: str, seconds: float) -> None:
    with engine.begin() as connection:
        moved = update(Request).where(Request.id == call)
        connection.execute(moved.values(finished_at=Request.finished_at - seconds))


def last(engine: Engine) -> FailedCall | None:
    return snapshot(engine, "j").last_call


def test_the_last_failed_call_is_told_with_its_age(engine: Engine, ledger: SqlLedger) -> None:
    assert last(engine) is None
    ledger.send("1", 5, None, None)
    assert last(engine) is None, "it is under way"
    ledger.failed("1", "HTTP 503: loading")
    ledger.send("2", 6, None, None)
    ledger.lost("2", "no answer within 9 s for api_key=hunter2")
    age(engine, "1", 30.0)
    age(engine, "2", 12.0)
    call = last(engine)
    assert call is not None
    assert (call.error, call.url) == ("no answer within 9 s for api_key=***", URL)
    assert 11.9 < call.seconds_ago < 20.0


def test_a_failed_call_among_answers_is_no_news(engine: Engine, ledger: SqlLedger) -> None:
    """Until answers stop coming."""
    for name, end in (("1", "done"), ("2", "failed")):
        ledger.send(name, 5, None, None)
        ledger.done(name, {}, PAID) if end == "done" else ledger.failed(name, "HTTP 429: slow down")
    assert last(engine) is None
    age(engine, "1", 10.0)
    assert last(engine) is not None
    ledger.send("3", 6, None, None)
    ledger.done("3", {}, PAID)
    assert last(engine) is None, "it was answered"


def test_only_calls_of_work_in_hand_count(engine: Engine, ledger: SqlLedger) -> None:
    ledger.send("1", 3, None, None)
    ledger.failed("1", "of a shard that is done")
    assert last(engine) is None
    ledger.send("2", 5, None, None)
    ledger.failed("2", "of a job that stopped")
    with engine.begin() as connection:
        connection.execute(update(Job).values(state="stopped"))
    assert last(engine) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_it_stands_on_the_screen(engine: Engine, ledger: SqlLedger, terminal: bool) -> None:
    ledger.send("1", 5, None, None)
    ledger.failed("1", "connection refused")
    age(engine, "1", 12.2)
    said = rf"last call: connection refused \({URL}\) 1\d s ago"
    looks = iter(["running", "running", "done", "done"])

    def look() -> None:
        with engine.begin() as connection:
            connection.execute(update(Job).values(state=next(looks)))

    screen, line = (
        Console(file=io.StringIO(), width=200, force_terminal=it, highlight=False) for it in (terminal, False)
    )
    print_snapshot(snapshot(engine, "j"), line)
    assert re.search(f"generate 4/24 documents; {said}$", written(line).strip())
    follow(engine, "j", screen, check=look)
    assert re.search(said, written(screen))


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
