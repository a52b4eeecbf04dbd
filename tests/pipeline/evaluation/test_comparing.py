"""Jobs over the same questions beside each other: paired by id, or refused with the reason."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from jobs_by_hand import EXACT, GENERATE, Row, data, questions, with_answers, worked
from rich.console import Console
from sqlalchemy import Engine
from tiny_models import save_tiny_llama

from pipeline.accounting.console import print_summary
from pipeline.accounting.report import render_comparison, render_html
from pipeline.accounting.summary import summarise
from pipeline.evaluation.comparing import Comparison, NothingToCompareError, compare
from pipeline.evaluation.display import print_comparison
from pipeline.storage.jobs import UnknownJobError, find_job
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine

QUESTIONS = 12
TWO = {"kind": "evaluate", "metrics": ["exact_match", "bleu4"]}


@dataclass(frozen=True)
class Jobs:
    """Done jobs of one database: every question answered, at the full prompt and at two rates of it."""

    engine: Engine
    folder: Path
    model: Path
    full: str
    rates: str
    rows: list[Row]

    def work(self, rows: list[Row], *stages: Row, name: str) -> str:
        return worked(self.engine, self.folder, self.model, rows, *stages, name=name)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Jobs]:
    """The answer key is what the model says to the full prompts, so that the full prompt scores 100."""
    folder = tmp_path_factory.mktemp("compared")
    engine = open_engine(f"sqlite:///{folder / 'contextmill.db'}")
    migrate(engine)
    asked = questions(QUESTIONS)
    draft = worked(engine, folder, tiny_model, asked, GENERATE, EXACT, name="draft")
    rows = with_answers(asked, [row["generated"].strip() for row in data(engine, draft)], range(QUESTIONS))
    full = worked(engine, folder, tiny_model, rows, GENERATE, TWO, name="full")
    compress = {"kind": "compress", "model": str(tiny_model), "rates": [0.9, 0.5]}
    rates = worked(engine, folder, tiny_model, rows, compress, GENERATE, TWO, name="short")
    yield Jobs(engine, folder, tiny_model, full, rates, rows)
    engine.dispose()


def known(value: float | None) -> float:
    assert value is not None
    return value


def test_every_rate_stands_beside_the_full_prompt(jobs: Jobs) -> None:
    found = compare(jobs.engine, [jobs.full, jobs.rates])
    assert found.metrics == ("exact_match", "bleu4", "corpus_bleu4")
    full, high, low = found.sides
    assert [(side.name, side.rate, side.baseline) for side in found.sides] == [
        ("full", None, True),
        ("short", 0.9, False),
        ("short", 0.5, False),
    ]
    assert (full.ratio, full.metrics["exact_match"].value, full.metrics["exact_match"].difference) == (1.0, 1.0, None)
    rows = data(jobs.engine, jobs.rates)
    for side in (high, low):
        mine = [row for row in rows if row["doc_id"].endswith(f"@{side.rate:g}")]
        exact = side.metrics["exact_match"]
        assert exact.value == pytest.approx(sum(row["exact_match"] for row in mine) / QUESTIONS)
        assert exact.difference == pytest.approx(known(exact.value) - 1)
        assert known(exact.difference_low) <= known(exact.difference) <= known(exact.difference_high) <= 0
        assert side.metrics["corpus_bleu4"].difference == pytest.approx(known(side.metrics["corpus_bleu4"].value) - 1)
        assert exact.common == side.scored == side.documents == QUESTIONS
        spent = sum(row["compress_seconds"] + row["generate_seconds"] for row in mine)
        assert side.cost_microusd == pytest.approx(spent / 3600 * 2.5 * 1e9 / QUESTIONS, abs=1)
        before, after = (sum(row[f"tokens_{name}"] for row in mine) for name in ("original", "compressed"))
        assert side.ratio == before / after
    assert 1 < known(high.ratio) < known(low.ratio) and known(high.tokens) > known(low.tokens)
    assert json.loads(json.dumps(found.to_json()))["sides"][1]["metrics"]["exact_match"]["common"] == QUESTIONS


def test_the_baseline_may_be_any_job_or_rate(jobs: Jobs) -> None:
    found = compare(jobs.engine, [f"{jobs.rates}@0.5", jobs.full[:10]], baseline=f"{jobs.rates}@0.9")
    assert [(side.rate, side.baseline) for side in found.sides] == [(0.9, True), (0.5, False), (None, False)]
    other = compare(jobs.engine, [jobs.full, f"{jobs.rates}@0.9", jobs.full[:9], f"{jobs.rates}@0.9"])
    assert len(other.sides) == 2
    gap = other.sides[1].metrics["exact_match"].difference
    assert found.sides[2].metrics["exact_match"].difference == pytest.approx(-known(gap))


def test_a_rate_is_set_against_the_same_rate(jobs: Jobs) -> None:
    other = {"kind": "compress", "model": str(jobs.model), "rates": [0.5, 0.9], "granular_k": 1.5}
    twin = jobs.work(jobs.rows, other, GENERATE, TWO, name="twin")
    found = compare(jobs.engine, [jobs.rates, twin])
    assert [(side.name, side.rate, side.baseline) for side in found.sides] == [
        ("short", 0.9, True),
        ("short", 0.5, True),
        ("twin", 0.5, False),
        ("twin", 0.9, False),
    ]
    assert [side.series for side in found.sides] == ["llmlingua"] * 2 + ["llmlingua (twin)"] * 2
    with pytest.raises(NothingToCompareError, match=rf"several rates \(0\.9, 0\.5\).*--baseline {jobs.rates}@0\.9"):
        compare(jobs.engine, [jobs.full], baseline=jobs.rates)


def test_what_only_one_job_has_scored_is_in_no_difference(jobs: Jobs) -> None:
    fewer = [row | ({"answer": None} if place < 3 else {}) for place, row in enumerate(jobs.rows)]
    fewer[5] = {**fewer[5], "answer": "another key"}
    job = jobs.work(fewer, GENERATE, TWO, name="fewer")
    side = compare(jobs.engine, [jobs.full, job]).sides[1]
    assert (side.documents, side.scored, side.metrics["exact_match"].common) == (
        QUESTIONS,
        QUESTIONS - 3,
        QUESTIONS - 4,
    )
    assert side.metrics["exact_match"].value == pytest.approx(8 / 9)
    assert side.metrics["exact_match"].difference == 0.0


def test_jobs_that_cannot_be_compared_say_why(jobs: Jobs) -> None:
    strangers = [{**row, "id": f"x{row['id']}"} for row in jobs.rows[:2]]
    keyed = [{**row, "answer": "no"} for row in jobs.rows[:2]]
    cases = {
        "in common: they are paired by id": jobs.work(strangers, GENERATE, TWO, name="strangers"),
        "are these the same questions": jobs.work(keyed, GENERATE, TWO, name="keyed"),
        "has no scores": jobs.work(jobs.rows[:1], GENERATE, name="plain"),
        "no metric is common": jobs.work(jobs.rows[:2], GENERATE, {**EXACT, "metrics": ["token_f1"]}, name="f1"),
        "scored in different ways": jobs.work(jobs.rows[:2], GENERATE, {"kind": "evaluate", "task": "qa"}, name="qa"),
    }
    for complaint, job in cases.items():
        with pytest.raises(NothingToCompareError, match=complaint):
            compare(jobs.engine, [jobs.full, job])
    with pytest.raises(NothingToCompareError, match=r"has no rate 0\.3; it has 0\.9, 0\.5"):
        compare(jobs.engine, [f"{jobs.rates}@0.3"])
    with pytest.raises(NothingToCompareError, match="it has only its one budget"):
        compare(jobs.engine, [f"{jobs.full}@0.5"])
    with pytest.raises(UnknownJobError, match="no job"):
        compare(jobs.engine, ["nowhere"])


def test_data_that_is_gone_or_damaged_is_named(jobs: Jobs) -> None:
    job = jobs.work(jobs.rows[:3], GENERATE, TWO, name="gone")
    folder = Path(find_job(jobs.engine, job).output) / "data"
    part = next(folder.iterdir())
    part.unlink()  # a hard link: the other one must not be damaged
    part.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(NothingToCompareError, match="data is damaged"):
        compare(jobs.engine, [job])
    shutil.rmtree(folder)
    with pytest.raises(NothingToCompareError, match=f"contextmill resume {job}"):
        compare(jobs.engine, [job])


def shown(found: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_every_mean_with_its_documents(jobs: Jobs, width: int) -> None:
    lines = shown(compare(jobs.engine, [jobs.full, jobs.rates]), width).splitlines()
    assert max(map(len, lines)) <= width
    full = next(line.split() for line in lines if line.startswith("full"))
    assert {"1.0x", "100.0", "baseline"} < set(full) and "12 of 12 baseline" in " ".join(full)
    assert sum(line.startswith("short at 0.5") for line in lines) == 3


def test_jobs_of_one_name_are_told_apart(jobs: Jobs) -> None:
    found = compare(jobs.engine, [jobs.full, jobs.rates])
    full, *others = found.sides
    twin = replace(full, job_id="2fa64e00c0de", baseline=False)
    lines = shown(replace(found, sides=(full, twin, *others)), 140).splitlines()
    for label in f"full ({full.job_id[:6]})", "full (2fa64e)", "short at 0.5  ":
        assert sum(line.startswith(label) for line in lines) == 3


def test_the_page_plots_quality_over_ratio_and_loads_nothing(jobs: Jobs) -> None:
    html = render_comparison(compare(jobs.engine, [jobs.full, jobs.rates]))
    assert html.count("<svg") == 3
    assert "exact_match over compression ratio" in html and "times fewer tokens" in html
    assert "default-src 'none'" in html and "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert render_comparison(compare(jobs.engine, [jobs.full])).count("<svg") == 0


def test_the_report_of_one_job_shows_its_scores(jobs: Jobs) -> None:
    summary = summarise(jobs.engine, jobs.rates)
    html = render_html(summary)
    assert "Scores of the answers" in html
    assert html.count("over compression ratio</figcaption>") == 3
    console = Console(file=io.StringIO(), width=100)
    print_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.startswith("exact_match")]
    assert [row[1] for row in rows] == ["0.9", "0.5"]
    assert all(" ".join(row).endswith("12 of 12") for row in rows)
    assert summary.to_json()["evaluations"][0]["metric"] == "exact_match"
    assert summarise(jobs.engine, jobs.full).documents.reused == QUESTIONS  # of the draft: what generate had made


def command(jobs: Jobs, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.cli", "compare", *words, "-o", str(jobs.folder)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_compares_writes_the_page_and_refuses_in_a_sentence(jobs: Jobs) -> None:
    page = jobs.folder / "compare.html"
    done = command(jobs, jobs.full, jobs.rates, "--html", str(page), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [side["rate"] for side in json.loads(done.stdout)["sides"]] == [None, 0.9, 0.5]
    assert "<svg" in page.read_text(encoding="utf-8")
    refused = command(jobs, f"{jobs.full}@0.5")
    assert refused.returncode == 2
    assert "has no rate 0.5; it has only its one budget" in refused.stderr and "Traceback" not in refused.stderr


def test_a_judge_that_reads_none_of_the_answers_leaves_them_unanswered(jobs: Jobs) -> None:
    """Its window is shorter than any pair: the comparison stands, and the exit code says that nobody judged."""
    judge = save_tiny_llama(jobs.folder / "narrow", window=64)
    stage = '[[stages]]\nkind = "generate"\nmax_new_tokens = 4\n'
    (jobs.folder / "judge.toml").write_text(f"[target]\nmodel = {json.dumps(str(judge))}\n{stage}")
    page = jobs.folder / "unanswered.html"
    words = "--judge", str(jobs.folder / "judge.toml"), "--html", str(page)
    done = command(jobs, jobs.full, f"{jobs.rates}@0.5", *words)
    assert done.returncode == 1 and "no document came through: all 24 were rejected" in done.stderr
    assert "exact_match" in done.stdout and f"0 of {QUESTIONS}" in done.stdout
    assert f"{QUESTIONS} pairs unanswered" in done.stdout and "Judged by" in page.read_text(encoding="utf-8")
