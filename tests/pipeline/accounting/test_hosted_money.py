"""Whole jobs against an endpoint that bills exactly: what rows, usage, calls and the summary say of its money."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pyarrow.parquet as pq
import pytest
from by_hand import Silent, work_through
from fleet import job_spec, write_corpus
from openai_server import FakeOpenAI, Served
from sqlalchemy import Engine, func, select, text

from pipeline.accounting.figures import StageFigures
from pipeline.accounting.summary import summarise
from pipeline.producer import submit
from pipeline.storage.jobs import find_job
from schemas.records import REUSED_FROM
from schemas.tables import Usage

PRICED = "gpt-4"  # 30 and 60 micro-dollars a token: as the fake bills


@pytest.fixture
def server() -> FakeOpenAI:
    return FakeOpenAI()


@pytest.fixture
def url(server: FakeOpenAI) -> Iterator[str]:
    with Served(server) as at:
        yield at


def night(engine: Engine, folder: Path, url: str, documents: int, model: str = PRICED, **stage: Any) -> str:
    """A job over so many documents, worked through to its end; returns it."""
    stages = [{"kind": "generate", "backend": "openai", "base_url": url, "max_new_tokens": 8, **stage}]
    return worked(engine, folder, [f"q {n}?" for n in range(documents)], stages, {"model": model})


def worked(engine: Engine, folder: Path, texts: list[str], stages: list[dict[str, Any]], target: dict[str, str]) -> str:
    corpus = write_corpus(folder / f"corpus-{len(texts)}.jsonl", len(texts), texts.__getitem__)
    job = submit(engine, job_spec(corpus, folder / "out", *stages, target=target), Silent()).job_id
    work_through(engine, job)
    return job


def billed(server: FakeOpenAI, since: int = 0) -> int:
    return sum(line["cost_microusd"] for line in server.bill[since:])


def usage_microusd(engine: Engine, job: str) -> int:
    """As docs/accounting.md has it: no condition, for what was taken over costs 0."""
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).where(Usage.job_id == job, Usage.cost_microusd.is_(None))) == 0
        return int(connection.scalar(select(func.sum(Usage.cost_microusd)).where(Usage.job_id == job)) or 0)


def generate(engine: Engine, job: str) -> StageFigures:
    return summarise(engine, job).stages[-1]


def data(engine: Engine, job: str) -> str:
    return f"{find_job(engine, job).output}/data"


def test_what_a_night_paid_is_the_same_in_parquet_in_sql_and_on_the_bill(
    engine: Engine, tmp_path: Path, server: FakeOpenAI, url: str
) -> None:
    """Rows keep what they cost to make; those another job made are told by their column, and were free here."""
    first = night(engine, tmp_path, url, 20)
    paid_first = billed(server)
    second = night(engine, tmp_path, url, 23)
    paid = billed(server, since=20)
    assert len(server.bill) == 23
    third = night(engine, tmp_path, url, 24)
    for job, cost, makers in (
        (first, paid_first, {}),
        (second, paid, {first: 20}),
        (third, billed(server, since=23), {first: 20, second: 3}),  # who made it, not who handed it on
    ):
        where = f"'{data(engine, job)}/*.parquet' where generate_reused_from is null"
        [(own, usd)] = duckdb.sql(f"select count(*), sum(cost_usd) from {where}").fetchall()
        frame = pandas.read_parquet(data(engine, job))
        mine = frame[frame.generate_reused_from.isna()]
        assert usd == mine.cost_usd.sum() == Decimal(cost).scaleb(-6)
        assert own == len(frame) - sum(makers.values())
        assert frame.generate_reused_from.value_counts().to_dict() == makers
        assert usage_microusd(engine, job) == cost == generate(engine, job).cost_microusd
    rows = pandas.read_parquet(data(engine, third))
    assert sum(rows.cost_usd) == Decimal(billed(server)).scaleb(-6)  # what it took to make them all
    assert (rows.generate_seconds > 0).all()
    with engine.connect() as connection:
        reused = connection.execute(select(Usage).where(Usage.reused_from.is_not(None))).all()
    assert {(row.cost_microusd, row.seconds) for row in reused} == {(0, 0.0)}
    assert (generate(engine, third).reused, generate(engine, third).unpriced) == (23, 0)


def test_a_night_that_took_over_everything_paid_nothing(
    engine: Engine, tmp_path: Path, server: FakeOpenAI, url: str
) -> None:
    night(engine, tmp_path, url, 6)
    again = generate(engine, night(engine, tmp_path, url, 5, max_retries=1))
    assert (again.documents, again.reused, again.cost_microusd, again.unpriced) == (5, 5, 0, 0)
    assert len(server.bill) == 6


def test_parts_without_the_column_are_taken_over_too(
    engine: Engine, tmp_path: Path, server: FakeOpenAI, url: str
) -> None:
    """Those that were written before there was one."""
    first = night(engine, tmp_path, url, 4)
    for part in Path(find_job(engine, first).output, "_parts").glob("*.parquet"):
        table = pq.read_table(part)
        pq.write_table(table.drop_columns([REUSED_FROM["generate"]]), part)
    second = night(engine, tmp_path, url, 5)
    assert len(server.bill) == 5
    assert pq.read_table(data(engine, second))["generate_reused_from"].to_pylist() == [first] * 4 + [None]


def test_each_stage_has_its_own_maker_and_copies_are_counted(
    engine: Engine, tmp_path: Path, url: str, tiny_model: Path
) -> None:
    """The second night answers anew what the first had shortened; a short prompt has nothing to lose."""
    texts = [f"{n} apples are on the table and some more are under it. " * 8 for n in range(3)] + ["one apple"]
    compress = {"kind": "compress", "model": str(tiny_model), "target_tokens": 40}
    answer = {"kind": "generate", "backend": "openai", "base_url": url, "max_new_tokens": 8}
    target = {"model": PRICED, "tokenizer": str(tiny_model)}
    first = worked(engine, tmp_path, texts, [compress, answer], target)
    second = worked(engine, tmp_path, texts, [compress, {**answer, "max_new_tokens": 7}], target)
    rows = pq.read_table(data(engine, second))
    assert rows["compress_reused_from"].to_pylist() == [first] * 4
    assert rows["generate_reused_from"].to_pylist() == [None] * 4
    assert rows["copied"].to_pylist() == [False] * 3 + [True]
    for job in (first, second):
        made = summarise(engine, job).stages[0]
        short = rows["tokens_original"][3].as_py()
        assert (made.copied, made.tokens_asked, made.cost_microusd) == (1, 3 * 40 + short, None)


RECONCILE = """
    select r.seq, j.code, r.cost_microusd
    from requests r
    join documents d on d.job_id = r.job_id and d.seq = r.seq
    left join usage u on u.job_id = r.job_id and u.stage = r.stage and u.seq = r.seq
    left join rejections j on j.job_id = r.job_id and j.stage = r.stage and j.source = d.source
    where r.job_id = :job and r.state = 'done' and u.seq is null
    order by r.seq
"""
"""As docs/accounting.md has it."""


def test_a_refusal_that_was_paid_for_is_in_the_total_and_found(
    engine: Engine, tmp_path: Path, server: FakeOpenAI, url: str
) -> None:
    server.script = deque(["", "filtered", "", "filtered"])
    job = night(engine, tmp_path, url, 8, concurrency=1)
    assert len(server.bill) == 8
    made, refused = generate(engine, job), [server.bill[n]["cost_microusd"] for n in (1, 3)]
    assert made.documents == 6
    assert made.cost_microusd == billed(server) == usage_microusd(engine, job) + made.rowless_microusd
    assert made.rowless_microusd == sum(refused)
    with engine.connect() as connection:
        found = connection.execute(text(RECONCILE), {"job": job}).all()
    assert [tuple(row) for row in found] == [
        (n, "content_filter", cost) for n, cost in zip((1, 3), refused, strict=True)
    ]
    assert summarise(engine, job).documents.rejected == 2


def test_an_unknown_price_stays_unknown_and_what_is_taken_over_is_known_to_be_free(
    engine: Engine, tmp_path: Path, url: str
) -> None:
    night(engine, tmp_path, url, 2, "nobodys-model")
    job = night(engine, tmp_path, url, 3, "nobodys-model")
    with engine.connect() as connection:
        costs = connection.scalars(select(Usage.cost_microusd).where(Usage.job_id == job).order_by(Usage.seq)).all()
    assert costs == [0, 0, None]
    assert (generate(engine, job).cost_microusd, generate(engine, job).unpriced) == (0, 1)  # printed as "at least"
    usd = pq.read_table(data(engine, job))["cost_usd"].to_pylist()
    assert usd == [None, None, None]
