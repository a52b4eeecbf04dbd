"""Rows of made-up jobs, written as the pipeline writes them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from schemas.job import JobSpec
from schemas.tables import Artifact, Budget, DocumentRow, Job, Part, Rejection, Request, Usage

CREATED = 1_795_305_600.0  # 2026-11-22 00:00 UTC
PRICE = "genai-prices:0.2.3:openai/gpt-4.1-mini@2026-11-22"


def spec(**target: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "night",
            "input": {"path": ["s3://me:hunter2@bucket.example/corpus.jsonl"]},
            "target": {"model": "gpt-4.1-mini", "prices": ["openai:gpt-4.1-mini"], **target},
            "stages": [
                {"kind": "compress", "rate": 0.5},
                {"kind": "generate", "backend": "openai"},
            ],
        }
    )


def job_values(**changes: Any) -> dict[str, Any]:
    made = changes.pop("spec", None) or spec()
    return {
        "id": "j1",
        "name": made.name,
        "state": "done",
        "stop_code": None,
        "error": None,
        "spec": made.model_dump(mode="json"),
        "spec_hash": made.spec_hash(),
        "input_hash": "b" * 32,
        "stage_hashes": ["c" * 32, "d" * 32],
        "output": "/data/runs/night-j1",
        "workers": 2,
        "documents": 0,
        "collapsed": 0,
        "estimate": None,
        "created_at": CREATED,
        "submitted_at": CREATED,
        "finished_at": CREATED + 100,
        **changes,
    }


def document(seq: int, status: str = "done", job_id: str = "j1") -> dict[str, Any]:
    return {
        "job_id": job_id,
        "seq": seq,
        "doc_id": f"doc-{seq}",
        "content_hash": f"{seq:032x}",
        "source": f"corpus.jsonl:{seq + 1}",
        "status": status,
    }


def usage(stage: int, seq: int, tokens: tuple[int, int | None, int], seconds: float, **more: Any) -> dict[str, Any]:
    """``tokens``: in, asked, out."""
    return {
        "job_id": "j1",
        "stage": stage,
        "seq": seq,
        "stage_hash": "cd"[stage] * 32,
        "content_hash": f"{seq:032x}",
        "part": f"part-{stage}.parquet",
        "row": seq,
        "tokens_in": tokens[0],
        "tokens_asked": tokens[1],
        "tokens_out": tokens[2],
        "seconds": seconds,
        "latency_seconds": None,
        "cost_microusd": None,
        "price": None,
        "reused_from": None,
        **more,
    }


def call(name: str, seq: int, state: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "job_id": "j1",
        "stage": 1,
        "seq": seq,
        "attempt": 1,
        "state": state,
        "sent_at": CREATED + seq,
        "finished_at": None,
        "reserved_microusd": None,
        "cost_microusd": None,
        "price": PRICE,
        "tokens_in": None,
        "tokens_cached": None,
        "tokens_out": None,
        "response": None,
        "error": None,
        **more,
    }


def small_job(engine: Engine) -> None:
    """Eight input rows: 3 done here, 1 taken over, 1 rejected by a stage, 1 dead, 1 malformed, 1 collapsed twin."""
    reuse = {"reused_from": "j0", "cost_microusd": 0}
    usages = [
        usage(0, 0, (1000, 500, 500), 2.0, latency_seconds=2.0),
        usage(0, 1, (1000, 500, 490), 1.0, latency_seconds=3.0),
        usage(0, 2, (100, 500, 100), 0.5, latency_seconds=1.0),  # copied
        usage(0, 3, (1000, 500, 480), 0.0, **reuse),
        usage(0, 5, (1000, 500, 500), 0.5, latency_seconds=4.0),  # died later, in generate
        usage(1, 0, (510, None, 20), 1.0, latency_seconds=1.5, cost_microusd=236, price=PRICE),
        usage(1, 1, (500, None, 30), 1.0, latency_seconds=0.5, cost_microusd=248, price=PRICE),
        usage(1, 2, (110, None, 10), 1.0, latency_seconds=2.5),  # at an unknown price
        usage(1, 3, (490, None, 10), 0.0, **reuse),
    ]
    rejections = [
        {"stage": -1, "source": "corpus.jsonl:7", "doc_id": None, "status": "rejected", "code": "bad_json"},
        {"stage": 0, "source": "corpus.jsonl:5", "doc_id": "doc-4", "status": "rejected", "code": "budget_too_small"},
        {"stage": 1, "source": "corpus.jsonl:6", "doc_id": "<script>alert(1)</script>", "status": "dead",
         "code": "failed"},
    ]  # fmt: skip
    reason = {"reason": "<img src=x onerror=alert(2)> at https://u:hunter2@h/x?api_key=hunter2"}
    calls = [
        call("r0", 0, "done", cost_microusd=236, tokens_in=510, tokens_cached=0, tokens_out=20, reserved_microusd=900),
        call("r1", 1, "done", cost_microusd=248, tokens_in=500, tokens_cached=0, tokens_out=30, reserved_microusd=900),
        call("r2", 2, "failed", error="429"),
        call("r3", 5, "lost", reserved_microusd=700, error="an answer that is none: '<b>' for api_key=hunter2"),
        call("r4", 2, "done", tokens_in=110, tokens_cached=0, tokens_out=10, price=None),
    ]
    statuses = ["done", "done", "done", "done", "rejected", "dead"]
    with Session(engine) as session, session.begin():
        session.execute(insert(Job), [job_values(documents=6, collapsed=1, error="at postgresql://me:hunter2@db/x")])
        session.execute(insert(DocumentRow), [document(seq, status) for seq, status in enumerate(statuses)])
        session.execute(insert(Usage), usages)
        session.execute(insert(Rejection), [{"job_id": "j1", **row, **reason} for row in rejections])
        session.execute(insert(Request), calls)
        session.add(Budget(job_id="j1", limit_microusd=5000, reserved_microusd=700, spent_microusd=484))
        session.add(Part(job_id="j1", path="part-1.parquet", stage=1, start=0, stop=6, rows=4, bytes=4096))
        session.add(Artifact(job_id="j1", name="report", path="/data/runs/night-j1/report.html", created_at=CREATED))
