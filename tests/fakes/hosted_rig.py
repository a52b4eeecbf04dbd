"""A job, its documents and its ledger for tests of the hosted path; as a process, one worker's attempt at a shard."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr
from sqlalchemy import Engine, insert, select

from pipeline.generation.hosted import HostedGenerator
from pipeline.models import ModelPool
from pipeline.stages import Halt, Outcome, Result, Run
from pipeline.storage.requests import SqlLedger
from pipeline.storage.sql import open_engine
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec
from schemas.tables import Base, Job, Request

JOB = "job-1"
PRICED = "gpt-4"  # 30 and 60 micro-dollars a token: whole numbers, as the fake bills by default


def new_job(engine: Engine, job_id: str = JOB) -> None:
    """The tables, and a job to hang calls on."""
    Base.metadata.create_all(engine)
    row: dict[str, Any] = {"id": job_id, "name": "job", "state": "running", "spec": {}}
    row |= {"spec_hash": "", "input_hash": "", "stage_hashes": [], "output": "", "workers": 1, "created_at": 0.0}
    with engine.begin() as connection:
        connection.execute(insert(Job).values(**row))


def documents(number: int, start: int = 0) -> list[Document]:
    texts = [f"question {seq}: how many of {seq} apples are left?" for seq in range(start, start + number)]
    parts = [PromptParts(contexts=(text,)) for text in texts]
    return [
        Document(seq, f"d{seq}", part, part.content_hash())
        for seq, part in zip(range(start, start + number), parts, strict=True)
    ]


def generator(url: str | None, *, model: str = PRICED, key: str | None = None, **settings: Any) -> HostedGenerator:
    base: dict[str, Any] = {"kind": "generate", "backend": "openai", "base_url": url, "max_new_tokens": 16}
    spec = GenerateSpec(**(base | settings))
    return HostedGenerator(spec, TargetSpec(model=model), SecretStr(key) if key else None)


def run_with(engine: Engine, attempt: int = 1, **parts: Any) -> Run:
    nothing = cast(ModelPool, None)  # the hosted path loads no model
    return Run(nothing, ledger=SqlLedger(engine, JOB, 0, attempt), **parts)


def results(outcomes: Sequence[Outcome]) -> list[Result]:
    assert all(isinstance(outcome, Result) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


def rows(engine: Engine, *states: str) -> dict[str, Any]:
    """The ledger's rows by call id, of these states or of all."""
    with engine.connect() as connection:
        found = connection.execute(select(Request)).all()
    return {row.id: row for row in found if not states or row.state in states}


def same_bill(engine: Engine, bill: Sequence[dict[str, Any]]) -> set[str]:
    """Hold the endpoint's bill against the ledger, call by call; returns the billed calls the ledger lists as lost.

    Every call we say is paid stands on the bill with the same tokens and the same money; whatever else stands there
    is one of our lost calls, and was held at no less than it cost.
    """
    billed = {line["call"]: line for line in bill}
    assert len(billed) == len(bill), "a call was sent twice under one id"
    done, lost = rows(engine, "done"), rows(engine, "lost", "sent")
    for call_id, row in done.items():
        line = billed[call_id]
        ours = (row.tokens_in, row.tokens_cached or 0, row.tokens_out, row.cost_microusd)
        assert ours == (line["tokens_in"], line["tokens_cached"], line["tokens_out"], line["cost_microusd"])
    rest = set(billed) - set(done)
    assert rest <= set(lost), "billed, and neither paid nor listed as lost"
    assert all(lost[call_id].reserved_microusd >= billed[call_id]["cost_microusd"] for call_id in rest)
    return rest


def start_worker(database: str, url: str, start: int, number: int, **settings: Any) -> subprocess.Popen[str]:
    """A process that does these documents and prints ``{"done": ..}`` or ``{"halt": code}``."""
    asked = json.dumps({"url": url, "start": start, "number": number, "settings": settings})
    command = [sys.executable, str(Path(__file__)), database, asked]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("asked", type=json.loads)
    words = parser.parse_args()
    asked = words.asked
    made = generator(asked["url"], **asked["settings"])
    try:
        outcomes = made.run(documents(asked["number"], asked["start"]), run_with(open_engine(words.database)))
    except Halt as halt:
        print(json.dumps({"halt": halt.code, "why": str(halt)}))
    else:
        print(json.dumps({"done": len(results(outcomes))}))


if __name__ == "__main__":
    main()
