"""The answers of two jobs to the documents that both have scored, as a judge gets them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.answers import references
from pipeline.evaluation.judging import Pair
from pipeline.evaluation.loading import EvaluatedJob
from pipeline.evaluation.pairing import pair
from pipeline.evaluation.results import suffix
from pipeline.storage.filesystem import resolve_path

COLUMNS = "doc_id", "text", "answer", "generated", "recovered"


def pairs_of(job: EvaluatedJob, base: EvaluatedJob, most: int | None) -> list[Pair]:
    """In the order of their ids' digests, so that the first ``most`` of them are a sample, the same for all jobs.

    Where the prompts differ (one without contexts, or with a summary of them) the longer one is told: it has what the
    question is about.
    """
    paired = pair(job.scores, base.scores)
    ids = [job.scores.ids[place] for place in paired.ours.tolist()]
    chosen = sorted(ids, key=lambda one: hashlib.sha256(one.encode()).digest())[:most]
    ours, theirs = _rows(job, chosen), _rows(base, chosen)
    return [_pair(one, ours[one], theirs[one]) for one in chosen]


def _pair(doc_id: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Pair:
    prompt = max(ours["text"], theirs["text"], key=len)
    return Pair(doc_id, prompt, references(ours["answer"] or ""), _said(ours), _said(theirs))


def _said(row: Mapping[str, Any]) -> str:
    """What ``evaluate`` read the answer out of."""
    recovered = row.get("recovered")
    said: str = row["generated"] if recovered is None else recovered
    return said


def _rows(job: EvaluatedJob, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of these documents alone, by the corpus' own ids, at the job's rate: all texts of a corpus fit no memory."""
    import pyarrow as pa
    import pyarrow.dataset as pads

    fs, root = resolve_path(job.output)
    dataset = pads.dataset(f"{root}/data", filesystem=fs, format="parquet")
    ending = "" if job.scores.rate is None else suffix(job.scores.rate)
    wanted = pads.field("doc_id").isin(pa.array([one + ending for one in ids], pa.string()))
    table = dataset.to_table([name for name in COLUMNS if name in dataset.schema.names], wanted)
    return {row["doc_id"].removesuffix(ending): row for row in table.to_pylist()}
