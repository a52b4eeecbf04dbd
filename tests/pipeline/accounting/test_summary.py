"""Summaries from rows in a real database, each figure added up by hand or by another way of counting."""

from __future__ import annotations

import json
import math
import random
import time
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from accounting_rows import CREATED, PRICE, call, document, job_values, small_job, spec, usage
from sqlalchemy import Engine, insert, update
from sqlalchemy.orm import Session

from pipeline.accounting.figures import BINS, Summary
from pipeline.accounting.queries import MOST_ROWS, PERCENTILES
from pipeline.accounting.summary import NoSuchJob, summarise
from schemas.job import JobSpec
from schemas.tables import DocumentRow, Job, Rejection, Request, Usage


@pytest.fixture
def summary(engine: Engine) -> Summary:
    small_job(engine)
    return summarise(engine, "j1")


def add(engine: Engine, table: type[Any], rows: list[dict[str, Any]]) -> None:
    with Session(engine) as session, session.begin():
        session.execute(insert(table), rows)


def test_documents_by_what_became_of_them(summary: Summary) -> None:
    d = summary.documents
    assert (d.accepted, d.done, d.reused, d.rejected, d.rejected_input) == (6, 4, 1, 2, 1)
    assert (d.dead, d.pending, d.collapsed) == (1, 0, 1)
    assert d.accepted == d.done + d.rejected - d.rejected_input + d.dead + d.pending


def test_tokens_count_every_document_but_time_only_this_jobs_work(summary: Summary) -> None:
    compress, generate = summary.stages
    assert (compress.documents, compress.reused) == (5, 1)
    assert (compress.tokens_in, compress.tokens_asked, compress.tokens_out) == (4100, 2100, 2070)
    assert (compress.copied, generate.copied) == (1, 0)  # asked for 500 of its 100 tokens: that is for all of them
    assert compress.seconds == 4.0
    assert compress.tokens_in_per_second == 3100 / 4.0
    assert compress.cost_microusd is None and compress.unpriced == 0  # local: there is nothing to price
    assert (generate.tokens_in, generate.tokens_asked, generate.tokens_out) == (1610, None, 70)
    assert (generate.cost_microusd, generate.unpriced) == (484, 1)
    assert generate.method == "gpt-4.1-mini (hosted)"


def test_savings_are_net_of_the_workers_time(summary: Summary) -> None:
    (saving,) = summary.savings
    assert saving.tokens_removed == 2030
    assert saving.gross_microusd == 812  # 2030 tokens at $0.40 a million
    assert saving.reused_gross_microusd == 208
    assert saving.worker_microusd == 2778  # 4 s at $2.50 an hour, rounded half up
    assert saving.net_microusd == 812 - 2778
    assert saving.break_even == pytest.approx(2.5 / 3600 / (0.4e-6 * 2030 / 4100))
    assert saving.break_even_cached == pytest.approx(2.5 / 3600 / (0.1e-6 * 2030 / 4100))
    assert saving.price == PRICE


def test_asked_and_achieved_ratios(summary: Summary) -> None:
    half = BINS // 2
    assert summary.ratios.asked == {half: 4, BINS: 1}
    assert summary.ratios.achieved == {24: 2, half: 2, BINS: 1}
    assert summary.ratios.over_budget == 0


def test_requests_budget_and_what_was_in_flight(summary: Summary) -> None:
    assert {r.state: (r.calls, r.cost_microusd) for r in summary.requests} == {
        "done": (3, 484),
        "failed": (1, None),
        "lost": (1, None),
    }
    (lost,) = summary.open_requests
    assert (lost.id, lost.doc_id, lost.reserved_microusd) == ("r3", "doc-5", 700)
    assert lost.reason is not None and lost.reason.startswith("an answer that is none")
    assert summary.budget is not None
    assert (summary.budget.limit_microusd, summary.budget.spent_microusd) == (5000, 484)
    assert summary.prices_used == {PRICE: 2}


def test_answers_without_a_row_are_paid_for_too(engine: Engine) -> None:
    """A refusal that was billed, of which usage knows nothing, counts; a lost call has no known cost."""
    small_job(engine)
    add(engine, Request, [call("r5", 4, "done", cost_microusd=90, tokens_in=500, tokens_out=0)])
    generate = summarise(engine, "j1").stages[1]
    assert (generate.cost_microusd, generate.rowless_microusd, generate.unpriced) == (484 + 90, 90, 1)


def test_what_was_taken_over_cost_a_known_nothing(engine: Engine) -> None:
    add(engine, Job, [job_values(documents=1)])
    add(engine, Usage, [usage(stage, 0, (10, None, 5), 0.0, reused_from="j0", cost_microusd=0) for stage in (0, 1)])
    compress, generate = summarise(engine, "j1").stages
    assert (generate.cost_microusd, generate.unpriced) == (0, 0)
    assert compress.cost_microusd is None  # a local stage: there is nothing to price


def test_rejections_by_reason_with_examples(summary: Summary) -> None:
    found = {(r.stage, r.status, r.code): (r.count, r.examples[0]["source"]) for r in summary.rejections}
    assert found == {
        ("input", "rejected", "bad_json"): (1, "corpus.jsonl:7"),
        ("compress", "rejected", "budget_too_small"): (1, "corpus.jsonl:5"),
        ("generate", "dead", "failed"): (1, "corpus.jsonl:6"),
    }


def test_no_secret_and_only_json(summary: Summary) -> None:
    text = json.dumps(summary.to_json(), allow_nan=False)
    assert "hunter2" not in text
    assert "bucket.example" in text
    assert json.loads(text)["documents"]["done"] == 4


def test_where_things_are(summary: Summary, engine: Engine) -> None:
    places = summary.places
    assert places.data == "/data/runs/night-j1/data"
    assert (places.parts, places.part_bytes, places.slot_bytes) == (1, 4096, None)
    assert places.files == {"report": "/data/runs/night-j1/report.html"}
    assert places.database.startswith(engine.dialect.name)
    assert summary.wall_seconds == 100


def test_an_unknown_price_stays_unknown(engine: Engine) -> None:
    add(engine, Job, [job_values(spec=spec(prices=["local:own-model"]), documents=1)])
    add(engine, DocumentRow, [document(0)])
    add(engine, Usage, [usage(0, 0, (100, 50, 50), 1.0)])
    saving, own = summarise(engine, "j1").savings
    assert own.target == "openai:gpt-4.1-mini"  # the hosted target's own price comes along
    assert (saving.gross_microusd, saving.net_microusd, saving.break_even) == (None, None, None)
    assert saving.note == "no known price"
    assert saving.worker_microusd == 694


def test_a_job_with_nothing_in_it(engine: Engine) -> None:
    add(engine, Job, [job_values(state="running", finished_at=None, created_at=time.time() - 50)])
    summary = summarise(engine, "j1")
    assert summary.documents.accepted == 0
    assert [stage.documents for stage in summary.stages] == [0, 0]
    assert summary.stages[0].tokens_in_per_second is None
    assert summary.savings[0].gross_microusd == 0
    assert summary.savings[0].break_even is None
    assert summary.wall_seconds is not None and 49 < summary.wall_seconds < 80
    json.dumps(summary.to_json(), allow_nan=False)


def test_a_job_that_stands_still_has_no_wall_time(engine: Engine) -> None:
    add(engine, Job, [job_values(state="stopped", stop_code="budget", finished_at=None)])
    summary = summarise(engine, "j1")
    assert (summary.state, summary.stop_code, summary.wall_seconds) == ("stopped", "budget", None)


def test_an_unknown_job_says_so(engine: Engine) -> None:
    with pytest.raises(NoSuchJob, match="no job 'nope'"):
        summarise(engine, "nope")


def test_other_jobs_do_not_leak_in(engine: Engine) -> None:
    small_job(engine)
    before = summarise(engine, "j1")
    add(engine, Job, [job_values(id="j2", documents=1)])
    add(engine, DocumentRow, [document(0, job_id="j2")])
    add(engine, Usage, [usage(0, 0, (7, 7, 7), 9.0, job_id="j2", latency_seconds=99.0)])
    assert summarise(engine, "j1") == before


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 100, 101, 997])
def test_percentiles_are_nearest_rank(engine: Engine, n: int) -> None:
    values = [random.Random(n).choice([0.25, 1.0, 7.5]) * k for k in range(1, n + 1)]
    random.Random(1).shuffle(values)
    add(engine, Job, [job_values(documents=n)])
    add(engine, Usage, [usage(0, k, (1, 1, 1), 1.0, latency_seconds=value) for k, value in enumerate(values)])
    latency = summarise(engine, "j1").stages[0].latency
    assert latency == {str(p): sorted(values)[math.ceil(p * n / 100) - 1] for p in PERCENTILES}


def test_sums_and_histograms_agree_with_counting_in_python(engine: Engine) -> None:
    rng = random.Random(7)
    rows = []
    for seq in range(2000):
        before = rng.randint(0, 10**10)
        asked = rng.randint(0, 2 * before + 1)
        rows.append(usage(0, seq, (before, asked, min(before, asked)), rng.random()))
    add(engine, Job, [job_values(documents=2000)])
    add(engine, Usage, rows)
    summary = summarise(engine, "j1")
    bins = Counter(min(r["tokens_out"] * BINS // r["tokens_in"], BINS) for r in rows if r["tokens_in"])
    assert summary.ratios.achieved == dict(sorted(bins.items()))
    assert summary.stages[0].tokens_in == sum(r["tokens_in"] for r in rows)
    assert summary.stages[0].seconds == pytest.approx(sum(r["seconds"] for r in rows))


def test_long_lists_are_cut_and_their_counts_kept(engine: Engine) -> None:
    add(engine, Job, [job_values()])
    common = {"job_id": "j1", "doc_id": None, "status": "rejected", "reason": "r"}
    rows = [{**common, "stage": 0, "source": f"a:{k:04}", "code": "too_long"} for k in range(500)]
    rows += [{**common, "stage": 1, "source": f"b:{k}", "code": f"code{k}"} for k in range(MOST_ROWS + 20)]
    add(engine, Rejection, rows)
    summary = summarise(engine, "j1")
    first = summary.rejections[0]
    assert (first.count, [e["source"] for e in first.examples]) == (500, ["a:0000", "a:0001", "a:0002"])
    assert len(summary.rejections) == MOST_ROWS
    assert all(rejection.examples for rejection in summary.rejections)


def test_the_estimate_stands_beside_what_happened(engine: Engine) -> None:
    small_job(engine)
    guess = {
        "documents": 7,
        "stages": [{"index": 0, "tokens_in": 4000, "tokens_out": 2000, "seconds": 8.0}],
    }
    with Session(engine) as session, session.begin():
        session.execute(update(Job).values(estimate=guess))
    rows = {row.what: (row.estimated, row.actual) for row in summarise(engine, "j1").comparisons}
    assert rows["documents"] == (7, 6)
    assert rows["compress: tokens in"] == (4000, 4100)
    assert rows["compress: worker time"] == (8.0, 4.0)
    assert rows["generate: tokens in"] == (None, 1610)
    assert rows["generate: cost"] == (None, None)  # one document is unpriced: the sum would be too small


def test_memory_does_not_grow_with_the_documents(engine: Engine) -> None:
    add(engine, Job, [job_values(documents=20_000)])
    peaks = []
    for first, last in ((0, 1_000), (1_000, 20_000)):
        add(engine, DocumentRow, [document(seq) for seq in range(first, last)])
        add(engine, Usage, [usage(0, seq, (100, 50, 50), 1.0, latency_seconds=seq / 7) for seq in range(first, last)])
        summarise(engine, "j1")
        tracemalloc.start()
        summarise(engine, "j1")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_a_stored_spec_round_trips(engine: Engine) -> None:
    small_job(engine)
    shown = summarise(engine, "j1").spec
    assert JobSpec.model_validate(shown).stages[0] == spec().stages[0]
    assert shown["input"]["path"] == ["s3://***@bucket.example/corpus.jsonl"]


def test_open_requests_are_listed_oldest_first(engine: Engine) -> None:
    add(engine, Job, [job_values()])
    add(engine, Request, [call(f"r{k}", k, "sent", sent_at=CREATED - k) for k in range(MOST_ROWS + 5)])
    summary = summarise(engine, "j1")
    assert [r.id for r in summary.open_requests[:2]] == [f"r{MOST_ROWS + 4}", f"r{MOST_ROWS + 3}"]
    assert len(summary.open_requests) == MOST_ROWS
    assert summary.requests[0].calls == MOST_ROWS + 5
