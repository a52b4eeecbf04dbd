"""The quality benchmark on a data folder of a few rows: corpora, job files, jobs, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from by_hand import Silent, work_through
from sqlalchemy import Engine

from benchmarks.quality import bbh, meetings, passages
from benchmarks.quality.equal_tokens import achieved_rates
from benchmarks.quality.gsm8k import hardest
from benchmarks.quality.matrix import Planned, Setup, plan, planned_or_none, read_methods
from benchmarks.quality.tables import against, report
from benchmarks.quality.tasks import TASKS
from pipeline.evaluation.answers import references
from pipeline.jobfile import load_job
from pipeline.producer import submit
from pipeline.storage.readers import BadRow, read_corpus
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from schemas.job import InputSpec
from schemas.reference import ReferenceSpec

METHODS = """
[cut]
settings = { method = "truncation" }
scorer = ""
ratios = [5]
[library]
settings = { method = "llmlingua", fidelity = "reference", options = { iterative_size = 20 } }
ratios = [5, 14]
[llmlingua]
settings = { method = "llmlingua" }
like = "library"
[of-tomorrow]
settings = { method = "telepathy" }
"""


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of every data set, in the layout that the benchmark reads."""
    data = tmp_path_factory.mktemp("data")
    problems = [{"question": f"Tom has {n} pens?", "answer": f"He has <<{n}={n}>>{n}.\n#### {n}"} for n in range(12)]
    lines(data / "gsm8k" / "train.jsonl", problems)
    lines(data / "gsm8k" / "test.jsonl", [{**row, "question": f"{row['question']} Now?"} for row in problems[:5]])
    shots = [
        f"Question: Ann has {n} cups?\nLet's think step by step\nShe has {n}.\nThe answer is {n}" for n in range(8)
    ]
    (data / "gsm8k" / "prompt_hardest.txt").write_text("\n\n".join(shots), encoding="utf-8")
    prompt = "CANARY\n-----\nDo it.\n\nQ: one?\nA: Let's think. So the answer is 1.\n\nQ: two?\nA: So the answer is 2."
    for task in bbh.TASKS:
        (data / "bbh" / "cot-prompts").mkdir(parents=True, exist_ok=True)
        (data / "bbh" / "cot-prompts" / f"{task}.txt").write_text(prompt, encoding="utf-8")
    rows = [
        {"id": f"{task}-{n}", "task": task, "input": f"{n}?", "target": "1"} for task in bbh.TASKS for n in range(2)
    ]
    lines(data / "bbh" / "bbh.jsonl", rows)
    nq = [
        {
            "id": f"nq-{n}",
            "question": f"who is {n}",
            "answers": [f"Name{n}x"],
            "ctxs": [{"title": "T", "text": f"It is Name{n}x."}],
        }
        for n in range(40)
    ]
    lines(data / "lost_in_the_middle" / "nq_oracle.jsonl", nq)
    context = [{"id": f"c{n}", "title": "A", "context": f"Paragraph {n} says word{n}."} for n in range(12)]
    lines(data / "squad" / "dev-v1.1.contexts.jsonl", context)
    asked = [
        {"id": f"s{n}", "title": "A", "context_id": f"c{n}", "question": "?", "answers": [f"word{n}"] * 2}
        for n in range(12)
    ]
    lines(data / "squad" / "dev-v1.1.questions.jsonl", asked)
    talk = "\n".join(f"Ann: turn {n} " + "and so on " * 20 for n in range(30))
    query = [{"query": "What?", "answer": "This."}, {"query": "Why?", "answer": "That."}]
    lines(
        data / "qmsum" / "val.jsonl",
        [{"id": f"m{n}", "transcript": talk, "specific_queries": query[: n + 1]} for n in range(2)],
    )
    return data


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = open_engine(f"sqlite:///{tmp_path / 'contextmill.db'}")
    migrate(made)
    yield made
    made.dispose()


def setup(folder: Path, out: Path, model: str) -> Setup:
    return Setup(folder, out, model, model, documents=3, max_new_tokens=4)


@pytest.mark.parametrize("task", TASKS)
def test_all_prompts_of_a_task_ask_the_same_questions(folder: Path, tmp_path: Path, task: str) -> None:
    """Jobs are paired by id and reference answer: the full prompt, zero-shot and the rest must agree on both."""
    asked = []
    for name, corpus in TASKS[task].corpora.items():
        path = tmp_path / f"{name}.jsonl"
        lines(path, list(islice(corpus(folder), 5)))  # type: ignore[arg-type]
        read = list(read_corpus(InputSpec(path=(str(path),))))
        found = [row for row in read if not isinstance(row, BadRow)]
        assert len(found) == len(read) > 2
        assert len({row.id for row in found}) == len(found)
        assert all(row.answer and row.parts.question for row in found)
        asked.append([(row.id, row.answer, row.parts.question) for row in found])
    assert all(one == asked[0] for one in asked)


def test_the_gold_passage_stands_among_passages_without_the_answer(folder: Path) -> None:
    full, gold = (list(passages.natural_questions(folder, 20, shown)) for shown in ("all", "gold"))
    places = set()
    for row, alone in zip(full, gold, strict=True):
        answer = references(row["answer"])[0]
        holding = [place for place, text in enumerate(row["contexts"]) if answer in text]
        assert len(row["contexts"]) == 20 and len(holding) == 1
        assert alone["contexts"][0].endswith(row["contexts"][holding[0]].partition(") ")[2])
        places.update(holding)
    assert len(places) > 10
    for question in passages.squad(folder, 4):
        assert len(question["contexts"]) == 4
        assert sum(references(question["answer"])[0] + "." in text for text in question["contexts"]) == 1


def test_examples_and_meetings_come_whole(folder: Path) -> None:
    assert len(hardest(folder)) == 8
    rows = list(islice(TASKS["gsm8k"].corpora["random-shots"](folder), 5))
    assert len({tuple(row["contexts"]) for row in rows}) == 5
    assert "<<" not in str(rows) and rows[3]["contexts"][0].splitlines()[-1].startswith("The answer is ")
    bbh = next(TASKS["bbh"].corpora["full"](folder))
    assert (bbh["instruction"], len(bbh["contexts"])) == ("Do it.", 2)
    meeting = next(meetings.summaries(folder))
    assert len(meeting["contexts"]) > 2 and all(len(piece) <= 2_000 for piece in meeting["contexts"])
    assert "".join(meeting["contexts"]).count("Ann: turn") == 30


def test_the_shipped_methods_are_known_and_their_job_files_are_the_jobs(
    folder: Path, tmp_path: Path, tiny_model: Path
) -> None:
    planned = list(plan(setup(folder, tmp_path / "out", str(tiny_model)), list(TASKS), read_methods()))
    names = [one.spec.name for one in planned]
    assert len(set(names)) == len(names)
    assert {one.method.name for one in planned if one.method} >= {"paper", "selective-context", "truncation", "random"}
    for one in planned:
        assert load_job(tmp_path / "out" / "jobs" / f"{one.spec.name}.toml", environment={}) == one.spec
    gsm8k = next(one for one in planned if one.spec.name == "gsm8k-paper")
    assert gsm8k.spec.rates == gsm8k.rates == (0.2, 0.071429, 0.05, 0.033333)
    reference = {one.rates: one.spec.stages[0] for one in planned if one.spec.name.startswith("gsm8k-reference-")}
    options = {rates: stage.options for rates, stage in reference.items() if isinstance(stage, ReferenceSpec)}
    assert list(options) == [(0.2,), (0.071429,), (0.05,), (0.033333,)]
    whole = options[(0.2,)].target_token / 0.2
    assert (
        options[(0.05,)].target_token == pytest.approx(whole * 0.05, abs=1) and options[(0.05,)].iterative_size == 100
    )


def test_methods_run_as_jobs_and_end_in_tables(
    engine: Engine, folder: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "methods.toml"
    path.write_text(METHODS, encoding="utf-8")
    methods, here = read_methods(path), setup(folder, tmp_path / "out", str(tiny_model))
    done = [(one, worked(engine, one)) for one in plan(here, ["gsm8k"], methods)]
    assert "of-tomorrow is left out: stages.0: " in capsys.readouterr().out
    rates: list[float] = []
    for planned, job in done[-2:]:
        rates += achieved_rates(engine, job, planned, rates)
    assert 1 > rates[0] > rates[1] > 0  # what the library kept of what it was asked for
    like = planned_or_none(here, "gsm8k", methods[2], tuple(rates))
    assert like is not None
    done.append((like, worked(engine, like)))
    table = report(engine, tmp_path, "gsm8k", done)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    equal = [f"llmlingua, {1 / rate:.3g}x asked" for rate in rates]
    prompts = ["full", "zero-shot", "one-shot", "random-shots"]
    assert [row[0] for row in rows[2:]] == [*prompts, "cut, 5x asked", "library-5x", "library-14x", *equal]
    assert all(row[5] == "3 of 3" for row in rows[2:])
    assert rows[2][6] == "" and rows[6][6].endswith(")")
    assert "cut" in (tmp_path / "gsm8k.html").read_text()
    sides = json.loads((tmp_path / "gsm8k.json").read_text())["sides"]
    assert [side["series"] for side in sides[4:]] == ["truncation", *["llmlingua (reference)"] * 2, *["llmlingua"] * 2]
    against_library = against(engine, done[-1], done[-3:-1]).splitlines()
    starts = [f"| {mine} against {its} | " for mine, its in zip(equal, ("library-5x", "library-14x"), strict=True)]
    assert [line.startswith(start) for line, start in zip(against_library[2:], starts, strict=True)] == [True, True]
    for mine, its in zip(sides[7:], sides[5:7], strict=True):
        assert mine["tokens"] == pytest.approx(its["tokens"], rel=0.15)


def worked(engine: Engine, planned: Planned) -> str:
    job = submit(engine, planned.spec, Silent()).job_id
    work_through(engine, job)
    return job
