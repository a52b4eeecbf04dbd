"""Jobs of several rates from corpus to report: every copy once, rejected, resumed and taken over by itself."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from by_hand import Silent, do, open_shards, take, work_through
from rich.console import Console
from sqlalchemy import Engine

from pipeline.accounting.console import print_summary
from pipeline.accounting.report import render_html
from pipeline.accounting.summary import summarise
from pipeline.compression.recovering import recover
from pipeline.cuts import NotCutError, UnknownDocumentError, find_cut, typical_cuts
from pipeline.exporting import export_rows
from pipeline.producer import submit
from pipeline.storage.jobs import cancel_job, find_job, resume_job
from pipeline.surveying import estimate_job
from schemas.job import JobSpec
from schemas.settings import Settings

RATES = [0.6, 0.4, 0.2]
STORY = "Janet sold {} clips in April, and half as many in May. She gave {} of them to a friend, who was glad. "


def spec(folder: Path, model: Path, rates: list[float] | None = None, **stage: Any) -> JobSpec:
    rows = [{"id": f"d{n}", "contexts": [STORY.format(n, n + 1) * 3], "question": "How many?"} for n in range(3)]
    rows.append({"id": "long question", "contexts": ["A clip."], "question": STORY.format(7, 8)})
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    compress = {"kind": "compress", "model": str(model), "rates": rates or RATES, **stage}
    return JobSpec.model_validate(
        {
            "name": "rates",
            "input": {"path": str(corpus)},
            "output": {"path": str(folder / "out")},
            "target": {"model": str(model), "prices": ["openai:gpt-4.1-mini"]},
            "stages": [compress, {"kind": "generate", "max_new_tokens": 4}, {"kind": "recover"}],
        }
    )


def rows_of(engine: Engine, job: str) -> list[dict[str, Any]]:
    rows = pq.read_table(f"{find_job(engine, job).output}/data").to_pylist()
    return sorted(rows, key=lambda row: int(row["seq"]))


def test_a_job_of_several_rates_from_corpus_to_report(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    """Interrupted after its first shard, resumed, done; then other rates, of which one is known already."""
    job = submit(engine, spec(tmp_path, tiny_model), Silent(), workers=2).job_id
    first, *rest = open_shards(engine, job)
    assert rest
    assert do(engine, take(engine, job, first)) == "done"
    assert cancel_job(engine, job)
    assert resume_job(engine, job)
    work_through(engine, job)
    assert find_job(engine, job).state == "done"

    rows = rows_of(engine, job)
    assert_rows(rows)
    assert_report(engine, job, rows)
    exported = tmp_path / "all.csv"
    assert export_rows(find_job(engine, job).output, exported) == len(rows)
    assert "rate_asked" in exported.read_text().partition("\n")[0]

    other = submit(engine, spec(tmp_path, tiny_model, [0.4, 0.3]), Silent()).job_id
    assert other != job
    work_through(engine, other)
    assert_builds_on(engine, other, job, {row["doc_id"]: row["generated"] for row in rows})
    assert_found(engine, job, other)


def assert_rows(rows: list[dict[str, Any]]) -> None:
    """Each copy once, within its own budget, cut out of the original as its map says."""
    ids = [row["doc_id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {f"d{n}@{rate}" for n in range(3) for rate in RATES}
    for row in rows:
        assert row["doc_id"].endswith(f"@{row['rate_asked']:g}")
        assert row["tokens_compressed"] <= row["tokens_asked"] == int(row["rate_asked"] * row["tokens_original"])
        spans = list(zip(row["kept"][::2], row["kept"][1::2], strict=True))
        assert "".join(row["text"][begin:end] for begin, end in spans) == row["compressed"]
        assert row["recovered"] == recover(row["text"], row["kept"], row["generated"], reach=200)


def assert_report(engine: Engine, job: str, rows: list[dict[str, Any]]) -> None:
    """One line per rate, which together are the whole."""
    summary = summarise(engine, job)
    refused = {(one.stage, one.code): one.count for one in summary.rejections}
    assert refused.keys() == {("input", "invalid_json"), ("compress", "budget_too_small")}
    assert [(one.rate, one.documents) for one in summary.rates] == [(rate, 4) for rate in RATES]
    assert sum(one.compressed for one in summary.rates) == 12 - refused["compress", "budget_too_small"] == len(rows)
    for one in summary.rates:
        mine = [row for row in rows if row["rate_asked"] == one.rate]
        assert one.compressed == len(mine)
        assert one.tokens_in == sum(row["tokens_original"] for row in mine)
        assert one.tokens_asked == sum(row["tokens_asked"] for row in mine)
        assert one.tokens_out == sum(row["tokens_compressed"] for row in mine)
        assert one.savings[0].tokens_removed == one.tokens_in - one.tokens_out
    assert sum(one.seconds for one in summary.rates) == pytest.approx(summary.stages[0].seconds)
    assert json.loads(json.dumps(summary.to_json()))["rates"][1]["rate"] == 0.4
    console = Console(file=io.StringIO(), width=110)
    print_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    (line,) = [line for line in console.file.getvalue().splitlines() if line.startswith("0.4 ")]
    assert f"{summary.rates[1].tokens_out:,}" in line.split()


def assert_builds_on(engine: Engine, other: str, job: str, generated: dict[str, str]) -> None:
    """What was done at the common rate is taken over with its answer, and cost nothing."""
    for row in rows_of(engine, other):
        common = row["rate_asked"] == 0.4
        assert row["compress_reused_from"] == row["generate_reused_from"] == (job if common else None)
        assert not common or row["generated"] == generated[row["doc_id"]]
    known, new = summarise(engine, other).rates
    assert known.seconds == 0.0
    assert new.seconds > 0.0


def assert_found(engine: Engine, job: str, newer: str) -> None:
    """One document by its id: of the newest job, unless another is named; or why there is none."""
    cut, others = find_cut(engine, "d1@0.4")
    assert (cut.job_id, others) == (newer, (job,))
    assert find_cut(engine, "d1@0.4", job)[0].kept == cut.kept
    with pytest.raises(UnknownDocumentError, match="no document 'd1' in this database; there are d1@"):
        find_cut(engine, "d1")
    with pytest.raises(NotCutError, match=r"long question@0\.2 of job .* is rejected: the budget is"):
        find_cut(engine, "long question@0.2", job)
    typical = typical_cuts(engine, job)
    assert [what for what, _ in typical] == ["Least cut", "Typical", "Most cut"]
    shares = [one.tokens_compressed / one.tokens_original for _, one in typical]
    assert shares == sorted(shares, reverse=True)
    assert render_html(summarise(engine, job), typical).count("<del>") > 10
    folder = Path(find_job(engine, newer).output)
    shutil.rmtree(folder / "_parts")  # as users do: data/ has the rows, too
    assert find_cut(engine, "d1@0.4")[0] == cut
    shutil.rmtree(folder / "data")
    assert typical_cuts(engine, newer) == []
    with pytest.raises(NotCutError, match=r"the row of document d1@0\.4 cannot be read in "):
        find_cut(engine, "d1@0.4")


def test_a_dry_run_counts_every_copy(tmp_path: Path, tiny_model: Path) -> None:
    made, seen, _ = estimate_job(spec(tmp_path, tiny_model), Settings())
    once, _, _ = estimate_job(spec(tmp_path, tiny_model, [0.4]), Settings())
    assert (seen.documents, seen.rejected) == (4, 1)
    assert (made.documents, once.documents) == (12, 4)
    assert made.tokens == pytest.approx(3 * once.tokens, abs=3)
    compress, _, back = made.stages
    assert (back.tokens_in, back.seconds) == (0, 0.0)
    assert compress.tokens_out == pytest.approx(sum(RATES) / 3 * compress.tokens_in, abs=1)
    assert any("once at each of 3 rates" in note for note in made.notes)
