"""Bad documents are rows of their own, wherever they stand; an endpoint that fails them all stops the job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import pytest
from hosted_rig import JOB, documents, generator, new_job, run_with
from openai_server import FakeOpenAI, Served
from sqlalchemy import Engine

from pipeline.generation.ledger import Bill
from pipeline.generation.shard import FAILED_IN_A_ROW
from pipeline.stages import Halt, Outcome, Refusal
from pipeline.storage.requests import SqlLedger

REFUSED, BROKEN = {"bad_request": "endpoint_error"}, {"500": "server_error"}
FAULTS = pytest.mark.parametrize(("fault", "code"), [*REFUSED.items(), *BROKEN.items()])


class Picky(FakeOpenAI):
    """Has one fault for the documents in ``bad``, always."""

    def __init__(self, fault: str, bad: Collection[int]) -> None:
        super().__init__()
        self.fault, self.bad = fault, [f"question {seq}:" for seq in bad]

    def _fault(self) -> str:
        text = json.dumps(self.bodies[-1])
        return self.fault if any(question in text for question in self.bad) else ""


def attempt(engine: Engine, url: str, number: int, of: int = 24) -> list[Outcome]:
    return generator(url, max_retries=0, concurrency=1).run(documents(of), run_with(engine, attempt=number))


def codes(made: list[Outcome]) -> Counter[str]:
    return Counter(outcome.code if isinstance(outcome, Refusal) else "done" for outcome in made)


def test_neighbours_an_endpoint_refuses_are_no_fault_of_one_that_answers_others(engine: Engine) -> None:
    with Served(Picky("bad_request", range(4, 16))) as url:
        assert codes(attempt(engine, url, 1)) == {"done": 12, "endpoint_error": 12}


@FAULTS
def test_a_job_that_its_first_documents_stopped_can_be_resumed(engine: Engine, fault: str, code: str) -> None:
    with Served(Picky(fault, range(12))) as url:
        with pytest.raises(Halt, match="10 documents in a row failed"):
            attempt(engine, url, 1)
        assert codes(attempt(engine, url, 2)) == {"done": 12, code: 12}


@FAULTS
def test_bad_documents_between_good_ones_are_no_row_when_those_are_paid_for(
    engine: Engine, fault: str, code: str
) -> None:
    """The first attempt ends before its commit; the second calls for the bad ones alone, one after the other."""
    with Served(Picky(fault, range(1, 24, 2))) as url:
        for number in (1, 2, 3):
            assert codes(attempt(engine, url, number)) == {"done": 12, code: 12}


@FAULTS
def test_an_endpoint_that_fails_everything_stops_every_attempt(engine: Engine, fault: str, code: str) -> None:
    with Served(FakeOpenAI(faults={fault: 1.0})) as url:
        for number in (1, 2, 3):
            with pytest.raises(Halt, match=f"{FAILED_IN_A_ROW} documents in a row failed"):
                attempt(engine, url, number, of=60)


def test_an_endpoint_that_breaks_after_its_first_answers_stops_the_job(engine: Engine) -> None:
    with Served(Picky("500", range(4, 60))) as url, pytest.raises(Halt, match="10 documents in a row failed"):
        attempt(engine, url, 1, of=60)


def test_what_another_worker_was_answered_counts(engine: Engine) -> None:
    """Its answer comes after this shard has begun."""

    def answer_elsewhere(*_: int) -> None:
        other = SqlLedger(engine, JOB, 0, 1)
        other.send("elsewhere", 100, None, None)
        other.done("elsewhere", {}, Bill(1, None, 1, None, None))

    with Served(Picky("bad_request", range(12))) as url:
        run = run_with(engine, progress=answer_elsewhere)
        made = generator(url, max_retries=0, concurrency=1).run(documents(24), run)
    assert codes(made) == {"done": 12, "endpoint_error": 12}


def test_one_jobs_failures_do_not_stop_another_job(engine: Engine) -> None:
    new_job(engine, "job-2")
    ours = run_with(engine)
    theirs = replace(ours, ledger=SqlLedger(engine, "job-2", 0, 1))
    few = documents(FAILED_IN_A_ROW - 1)
    with Served(FakeOpenAI(faults={"500": 1.0})) as url:
        asked = generator(url, max_retries=0, concurrency=1)
        for run in (ours, theirs):
            assert codes(asked.run(few, run)) == {"server_error": len(few)}
