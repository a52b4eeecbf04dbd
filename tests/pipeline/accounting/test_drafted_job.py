"""A job whose answers are drafted: who drafted what stands in Parquet, in SQL and in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs_by_hand import data, questions, worked
from rich.console import Console
from sqlalchemy import Engine, func, select, update

from pipeline.accounting.console import print_summary
from pipeline.accounting.figures import DraftFigures
from pipeline.accounting.report import render_html
from pipeline.accounting.summary import summarise
from schemas.tables import Draft


def stage(**settings: Any) -> dict[str, Any]:
    return {"kind": "generate", "max_new_tokens": 24, "chat": False, **settings}


def test_who_drafted_what_is_accounted_for(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    name = str(tiny_model)
    drafted = stage(drafters=[name], draft_rounds=[2], draft_tokens=1, draft_tail=2)
    job = worked(engine, tmp_path, tiny_model, questions(5), drafted, name="drafted")
    rows = data(engine, job)
    for row in rows:
        target, copies, drafter = row["drafts"]
        assert [one["model"] for one in row["drafts"]] == [name, "max-gram", name]
        assert (target["passes"], copies["passes"]) == (row["target_passes"], 0)
        assert drafter["passes"] == 2 * (row["target_passes"] - 1)  # but for the pass that read the prompt
        assert copies["drafted"] + drafter["drafted"] == row["tokens_drafted"]
        assert copies["accepted"] + drafter["accepted"] == row["tokens_accepted"]
        assert 0 < drafter["accepted"] <= drafter["drafted"] == 2 * (row["target_passes"] - 1)
        assert target["parameters"] == drafter["parameters"] > copies["parameters"] == 0
    with engine.connect() as connection:
        sums = select(func.count(), func.sum(Draft.passes), func.sum(Draft.accepted)).where(Draft.job_id == job)
        found = connection.execute(sums).one()
    every = [one for row in rows for one in row["drafts"]]
    assert tuple(found) == (15, sum(one["passes"] for one in every), sum(one["accepted"] for one in every))

    summary = summarise(engine, job)
    (drafting,) = summary.drafting
    assert drafting.answers == 5 and drafting.tokens == sum(row["tokens_generated"] for row in rows)
    passes = sum(row["target_passes"] for row in rows)
    assert drafting.tokens_per_pass == drafting.tokens / passes > 1
    assert drafting.swi == drafting.tokens / (passes + 2 * (passes - 5))  # the drafter is as large as the target
    html = render_html(summary)
    assert "Standardised walltime improvement" in html and "Drafts and what was accepted" in html
    console = Console(width=120, record=True)
    print_summary(summary, console)
    assert "max-gram" in (said := console.export_text()) and f"{drafting.tokens_per_pass:.2f}" in said
    assert "drafted nothing" not in said + html and not drafting.idle
    broken = replace(drafting, models=(*drafting.models, DraftFigures("broken", 0, 0, 0, 0)))
    summary = replace(summary, drafting=(broken,))
    print_summary(summary, console)
    assert "broken drafted nothing: it did not pay, or the log says why" in console.export_text()
    assert "broken drafted nothing" in render_html(summary)
    assert not replace(broken, tokens=broken.answers).idle, "one token each: nothing was to be drafted"


def test_who_was_not_to_draft_is_not_called_idle_and_who_was_missed_is_one_line(
    engine: Engine, tmp_path: Path, tiny_model: Path
) -> None:
    """Max-Gram is off; one of two drafters was not there for some of the answers."""
    drafted = stage(drafters=[str(tiny_model)], draft_rounds=[2])
    job = worked(engine, tmp_path, tiny_model, questions(4), drafted, name="missed")
    (drafting,) = summarise(engine, job).drafting
    assert not drafting.idle and drafting.models[1].drafted == 0
    with engine.begin() as connection:
        missed = (Draft.job_id == job) & (Draft.seq == 0) & (Draft.place == 2)
        connection.execute(update(Draft).where(missed).values(parameters=0, passes=0, drafted=0, accepted=0))
    (after,) = summarise(engine, job).drafting
    assert [one.model for one in after.models] == [one.model for one in drafting.models] and not after.idle
    assert after.models[2].parameters == drafting.models[2].parameters
    assert 0 < after.models[2].drafted < drafting.models[2].drafted


def test_what_was_chosen_stands_with_the_job(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    """Every round is in it, though the worker answered for another job before."""
    pays = stage(drafters=[str(tiny_model)], draft_tokens="auto", max_new_tokens=20)
    rounds: dict[str, int] = {}
    for name in ("first", "second"):
        job = worked(engine, tmp_path, tiny_model, questions(4 + len(rounds)), pays, name=name)
        passes = [row["target_passes"] - 1 for row in data(engine, job)]  # but for the one that read the prompt
        (kept,) = tmp_path.rglob(f"{name}-*/generate/drafting-*.json")
        said = json.loads(kept.read_text())
        (kind,) = said["drafted"]
        assert said["model"] == kind["drafters"][0] == str(tiny_model)
        rounds[name] = sum(one["times"] for one in kind["ways"])
        assert max(passes) <= rounds[name] <= sum(passes)
        assert all(one["tokens"] >= 1 for one in kind["ways"]) and min(kind["expected"]["copies"]) == 1
    plain = worked(engine, tmp_path, tiny_model, questions(3), stage(draft_tokens=3), name="plain")
    assert data(engine, plain) and not list(tmp_path.rglob("plain-*/generate/drafting-*.json"))


def test_nothing_is_said_of_drafts_where_there_are_none_or_others_made_them(
    engine: Engine, tmp_path: Path, tiny_model: Path
) -> None:
    plain = worked(engine, tmp_path, tiny_model, questions(3), stage(), name="plain")
    assert {row["drafts"] for row in data(engine, plain)} == {None} and not summarise(engine, plain).drafting
    again = worked(engine, tmp_path, tiny_model, questions(3), stage(draft_tokens=3), name="again")
    assert {row["generate_reused_from"] for row in data(engine, again)} == {plain}
    summary = summarise(engine, again)
    assert not summary.drafting and "Drafting" not in render_html(summary)
