"""What the terminal shows, read back as text."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import date

import pytest
from accounting_rows import small_job, spec
from rich.console import Console
from sqlalchemy import update

from pipeline.accounting import wording
from pipeline.accounting.console import print_estimate, print_summary
from pipeline.accounting.estimate import estimate
from pipeline.accounting.figures import RejectionFigures, Summary
from pipeline.accounting.summary import summarise
from pipeline.storage.sql import open_engine
from schemas.tables import Base, Job

DAY = date(2026, 11, 22)


@pytest.fixture
def summary(sqlite_url: str) -> Summary:
    engine = open_engine(sqlite_url)
    Base.metadata.create_all(engine)
    small_job(engine)
    guess = {"documents": 6, "stages": [{"index": 0, "seconds": 8.0}]}
    with engine.begin() as connection:
        connection.execute(update(Job).values(estimate=guess))
    made = summarise(engine, "j1")
    engine.dispose()
    return made


def printed(summary: Summary, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_summary_says_what_counts_at_any_width(summary: Summary, width: int) -> None:
    text = printed(summary, width)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert " ".join(rows["documents"][1:]) == "done 4 of them reused 1 rejected 2 dead 1 collapsed 1"
    assert rows["compress"][1:4] == ["4,100", "2,100", "2,070"]
    assert rows["openai:gpt-4.1-mini"][1:] == ["$0.000812", "\N{MINUS SIGN}$0.001966", "3,506"]
    assert "2,030 tokens" in text and "less $0.002778 work" in text
    assert rows["generate"][-2:] == ["≥", "$0.000484"]
    assert "unknown for 1 of the answers" in text
    assert "1 lost: nobody saw their end; perhaps billed, at most $0.000700" in text
    assert "copied     1 of 5 documents: no longer than asked for" in text
    assert rows["parquet"][1] == "/data/runs/night-j1/data"
    assert rows["report"][1] == "/data/runs/night-j1/report.html"
    assert "estimate   compress: worker time 8.00 s, was 4.00 s" in text
    assert "hunter2" not in text


def test_a_long_path_is_not_broken(summary: Summary) -> None:
    path = "/very/long" * 30
    places = replace(summary.places, data=path)
    assert path in printed(replace(summary, places=places), 80)


def test_what_is_left_out_of_the_reasons_is_counted(summary: Summary) -> None:
    reasons = tuple(RejectionFigures("input", "rejected", f"code{n}", 10 - n, ()) for n in range(8))
    text = printed(replace(summary, rejections=reasons), 100)
    assert "  6 rejected in input: code4\n  12 for other reasons\n" in text
    assert "code5" not in text
    assert "other reasons" not in printed(replace(summary, rejections=reasons[:5]), 100)


def test_text_from_outside_is_no_markup(summary: Summary) -> None:
    assert "[red]x[/nonsense]" in printed(replace(summary, name="[red]x[/nonsense]", error="[/]"), 80)


def test_an_estimate_names_its_unknowns() -> None:
    console = Console(file=io.StringIO(), width=110)
    print_estimate(estimate(spec(model="no-such-model"), 10, 40_000, when=DAY), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "10 documents, 40,000 characters, about 10,000 tokens" in text
    assert "unknown, not 0" in text
    assert "4 characters per token are assumed" in text


def test_an_estimate_of_one_document_says_so() -> None:
    console = Console(file=io.StringIO(), width=110)
    print_estimate(estimate(spec(model="no-such-model"), 1, 4_000, when=DAY), console)
    assert isinstance(console.file, io.StringIO)
    assert "1 document, 4,000 characters, about 1,000 tokens" in console.file.getvalue()


@pytest.mark.parametrize(
    ("microusd", "text"),
    [(None, "unknown"), (0, "$0.00"), (1, "$0.000001"), (812, "$0.000812"), (42_100, "$0.0421"),
     (1_234_500_000, "$1,234.50"), (-42_100, "−$0.0421")],
)  # fmt: skip
def test_money_reads_with_the_digits_it_deserves(microusd: int | None, text: str) -> None:
    assert wording.money(microusd) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (0, "0.00 s"), (9.994, "9.99 s"), (9.996, "10.0 s"), (99.94, "99.9 s"), (99.96, "1 min 40 s"),
     (3599.6, "1 h 00 min"), (12_000, "3 h 20 min")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


def test_one_is_not_several() -> None:
    assert [wording.counted(n, "row") for n in (0, 1, 1204)] == ["0 rows", "1 row", "1,204 rows"]


def test_sizes_and_shares() -> None:
    assert [wording.size(n) for n in (None, 0, 4200, 3 * 2**30)] == ["unknown", "0 bytes", "4.1 KiB", "3.0 GiB"]
    assert (wording.percent(1, 3), wording.percent(1, 0)) == ("33.3 %", "–")
