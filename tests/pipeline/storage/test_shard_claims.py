"""What a claim, a renewal and a release are conditional on, one condition at a time, on both databases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hosted_rig import JOB, new_job
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.storage import shards
from pipeline.storage.shards import Claim, Commit, shard_row
from pipeline.storage.sql import open_engine
from pipeline.watching import snapshot
from schemas.tables import DocumentRow, Job, Rejection, Shard, Usage

ID = "0-0-2"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A running job of one pending shard of two documents, which may be tried twice."""
    made = open_engine(database_url)
    new_job(made)
    with made.begin() as connection:
        connection.execute(insert(Shard).values(**shard_row(JOB, 0, 0, 2, 2)))
        for seq in range(2):
            row = {"job_id": JOB, "seq": seq, "doc_id": f"d{seq}", "content_hash": "h", "source": "s"}
            connection.execute(insert(DocumentRow).values(**row))
    yield made
    made.dispose()


def claim(engine: Engine, lease_seconds: float = 60.0) -> Claim | None:
    return shards.claim(engine, JOB, ID, "me", lease_seconds)


def held(engine: Engine, lease_seconds: float = 60.0) -> Claim:
    made = claim(engine, lease_seconds)
    assert made is not None
    return made


def shard(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(select(Shard)).one()


def change(engine: Engine, table: type[Job | Shard], **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(table).values(**values))


def test_a_shard_is_tried_no_oftener_than_it_may_be(engine: Engine) -> None:
    for attempt in (1, 2):
        made = held(engine)
        assert (made.attempt, made.attempt_limit) == (attempt, 2)
        assert shards.release(engine, made, error="failed")
    assert claim(engine) is None
    assert (shard(engine).state, shard(engine).attempt, shard(engine).error) == ("pending", 2, "failed")


def test_a_shard_handed_back_by_no_fault_of_its_own_loses_no_try(engine: Engine) -> None:
    for attempt in range(1, 6):
        made = held(engine)
        assert (made.attempt, made.attempt_limit) == (attempt, attempt + 1)  # the fence grows, and its limit with it
        assert shards.release(engine, made, error=None, charge=False)


def test_a_shard_that_failed_waits_before_it_is_tried_again(engine: Engine) -> None:
    assert shards.release(engine, held(engine), error="failed", delay=60.0)
    assert claim(engine) is None
    change(engine, Shard, not_before=Shard.not_before - 60.0)
    assert held(engine).attempt == 2


@pytest.mark.parametrize("state", ["cancelled", "stopped", "done"])
def test_a_job_that_is_not_active_is_not_worked_on(engine: Engine, state: str) -> None:
    made = held(engine)
    change(engine, Job, state=state)
    assert not shards.renew(engine, made, 60, 1, 1)
    assert shards.release(engine, made, error=None, charge=False)
    assert claim(engine) is None


@pytest.mark.parametrize("state", ["done", "split", "dead"])
def test_a_shard_that_is_over_is_not_to_be_had(engine: Engine, state: str) -> None:
    change(engine, Shard, state=state)
    assert claim(engine) is None


def test_a_lease_that_is_renewed_does_not_run_out(engine: Engine) -> None:
    made = held(engine, 1.5)
    assert shards.renew(engine, made, 60, 1, 7)
    time.sleep(1.6)
    assert claim(engine) is None
    assert (shard(engine).documents_done, shard(engine).tokens_done) == (1, 7)


def test_what_an_attempt_is_doing_is_seen_until_it_ends(engine: Engine) -> None:
    change(engine, Job, spec={"stages": [{"kind": "pretrain"}]})
    made = held(engine)
    assert snapshot(engine, JOB).stages[0].doing is None
    assert shards.renew(engine, made, 60, 1, 7, "step 3 of 9, loss 1.500")
    assert snapshot(engine, JOB).stages[0].doing == "step 3 of 9, loss 1.500"
    assert shards.release(engine, made, error="failed")
    assert snapshot(engine, JOB).stages[0].doing is None
    held(engine)
    assert snapshot(engine, JOB).stages[0].doing is None


def usage(seq: int) -> dict[str, Any]:
    numbers = {"row": seq, "tokens_in": 1, "tokens_out": 1, "seconds": 0.0}
    return {"job_id": JOB, "stage": 0, "seq": seq, "stage_hash": "s", "content_hash": "h", "part": "p", **numbers}


def test_a_commit_is_all_or_nothing(engine: Engine) -> None:
    """Its last statement fails: neither rows nor the state of the shard or its documents stay."""
    refusal = {"job_id": JOB, "stage": 0, "source": "s", "doc_id": "d0", "status": "rejected", "code": "c", "seq": 0}
    twice = [{**refusal, "reason": "r"}] * 2
    with pytest.raises(IntegrityError):
        shards.finish(engine, held(engine), Commit(usage=[usage(1)], rejections=twice, last_stage=True))
    assert shard(engine).state == "leased"
    with engine.connect() as connection:
        assert set(connection.scalars(select(DocumentRow.status))) == {"pending"}
        assert not connection.scalars(select(Usage.seq)).all()
        assert not connection.scalars(select(Rejection.source)).all()


@pytest.mark.parametrize("state", ["cancelled", "stopped"])
def test_a_publication_that_ends_late_does_not_bring_a_cancelled_job_back(engine: Engine, state: str) -> None:
    made = held(engine)
    change(engine, Job, state=state)
    assert not shards.finish(engine, made, Commit(job={"state": "done"}))
    with engine.connect() as connection:
        assert connection.scalar(select(Job.state)) == state
    assert shard(engine).state == "leased"
