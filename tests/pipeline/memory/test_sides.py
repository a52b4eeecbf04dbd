"""What slots are set against reads no more than there are slots, and the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tiny_models import lines

from pipeline.cli.icae_answering import _spec
from pipeline.compression.tokens import Tokenising
from pipeline.memory.encode_stage import Cut
from pipeline.memory.prompting import Written
from pipeline.memory.sides import (
    SIDES,
    budgets,
    columns_of,
    job_of,
    questions_of,
    shortened,
    summarised,
    summary_job,
    to_summarise,
)
from pipeline.models import load_tokenizer
from pipeline.storage.readers import InputError
from schemas.job import Columns, InputSpec, JobSpec
from schemas.memory import EncodeSpec

CONTEXTS = ["\n".join(lines()[:3]), "\n".join(lines()[3:5])]
PWC = Columns(contexts="input", question="prompt", answer="answer")
GENERATE = {"kind": "generate", "max_new_tokens": 7, "stop": ["x"], "dtype": "bfloat16", "device": "cpu"}


@pytest.fixture(scope="module")
def tokeniser(tiny_model: Path) -> Tokenising:
    return Tokenising(load_tokenizer(str(tiny_model)))


@pytest.fixture
def rows(tmp_path: Path) -> InputSpec:
    found = [
        {"input": CONTEXTS[0], "prompt": "Who?", "answer": ["Ann", "Anna"]},
        {"input": [CONTEXTS[1], CONTEXTS[0], " "], "prompt": "What?", "answer": "clips"},
        {"input": CONTEXTS[1], "prompt": " ", "answer": "clips"},
        {"input": CONTEXTS[1], "prompt": "Why?", "answer": [""]},
        {"input": 7, "prompt": "Why?", "answer": "so"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return InputSpec(path=(str(path),), columns=PWC)


def test_rows_without_a_context_a_question_or_an_answer_are_counted(rows: InputSpec, tmp_path: Path) -> None:
    found = questions_of(rows)
    assert [row["question"] for row in found.rows] == ["Who?", "What?"] and found.left_out == 3
    assert found.first is not None and found.first.endswith("rows.jsonl:3 has no question")
    assert len({row["id"] for row in found.rows}) == 2, "without ids of their own, by what they hold"
    (tmp_path / "texts.txt").write_text("a text")
    with pytest.raises(InputError, match=r"none of its rows is .*texts.txt has no question; see \[input.columns\]"):
        questions_of(InputSpec(path=(str(tmp_path / "texts.txt"),)))


def test_a_summary_is_no_longer_than_there_are_slots(rows: InputSpec, tokeniser: Tokenising) -> None:
    found = questions_of(rows).rows
    known = budgets(found, tokeniser, Cut(span=16, ratio=4.0))
    counts = tokeniser.count(CONTEXTS)
    assert [known[text] for text in CONTEXTS] == [sum(-(-n // 4) for n in spans(count)) for count in counts]
    assert known[" "] == 0
    asked = [*to_summarise(known)]
    assert [(row["id"], row["contexts"]) for row in asked] == [("0", [CONTEXTS[0]]), ("1", [CONTEXTS[1]])]
    assert asked[0]["question"] == f"Summarize the above text in at most {known[CONTEXTS[0]] * 3 // 4} words."
    long = Written("Many clips were sold, " * 40, ended=False)
    first, second = summarised(found, known, {"0": long, "1": Written(" Clips. ", ended=True)}, tokeniser)
    (said,) = first["contexts"]
    assert long.text.startswith(said) and 0 < tokeniser.count([said])[0] <= known[CONTEXTS[0]]
    assert second["contexts"] == ["Clips.", said, " "] and second["answer"] == found[1]["answer"]
    (only,) = summarised(found, known, {"0": long}, tokeniser)
    assert only == first, "a row with a context of which there is no summary is left out"


def spans(tokens: int) -> list[int]:
    """Lengths of the fewest spans of 16 at most."""
    number = -(-tokens // 16)
    return [tokens // number + (at < tokens % number) for at in range(number)]


def test_a_text_is_cut_by_what_its_beginning_counts(tokeniser: Tokenising) -> None:
    for text in (CONTEXTS[0], "a", "12元34角 and 👩‍👩‍👧‍👦"):
        whole = tokeniser.count([text])[0]
        assert shortened(text, whole, tokeniser) == text == shortened(text, whole + 9, tokeniser)
        for tokens in range(whole):
            said = shortened(text, tokens, tokeniser)
            assert text.startswith(said) and (not said or tokeniser.count([said])[0] <= tokens)
    assert shortened(CONTEXTS[0], 0, tokeniser) == ""


def test_each_side_is_the_same_job_but_for_what_it_reads() -> None:
    evaluate = {"kind": "evaluate", "task": "qa"}
    encode = {"kind": "encode", "encoder": "night", "precision": "int8"}
    given = {"input": {"path": "rows.jsonl"}, "target": {"model": "some"}, "stages": [encode, GENERATE, evaluate]}
    job, spec = JobSpec.model_validate(given), EncodeSpec.model_validate({**encode, "ratio": 3.0})
    made = {side: job_of(side, job, spec, Cut(128, 3.0)) for side in SIDES}
    assert {side: len(one.stages) for side, one in made.items()} == {
        "slots": 3, "text": 2, "cut": 3, "summary": 2, "lingua": 3, "nothing": 2,
    }  # fmt: skip
    assert all(one.stages[-2:] == job.stages[-2:] and one.target == job.target for one in made.values())
    assert made["slots"].stages[0] == spec
    first = {side: made[side].stages[0].model_dump() for side in ("cut", "lingua")}
    assert all((one["rate"], one["budget"]) == (0.333333, "contexts") for one in first.values())
    assert (first["cut"]["method"], first["lingua"]["method"]) == ("truncation", "llmlingua")
    (cut, *_) = job_of("cut", job, spec, Cut(128, 1e9)).stages
    assert cut.model_dump()["rate"] == round(1 / 128, 6), "as a span has one slot at least"
    assert [first["lingua"][name] for name in ("model", "dtype", "device")] == ["some", "bfloat16", "cpu"]
    assert "contexts" not in columns_of("nothing") and columns_of("text")["contexts"] == "contexts"
    alone = JobSpec.model_validate({**given, "stages": [GENERATE]})
    (short,) = summary_job(alone, 20).stages
    assert short.model_dump() == {**alone.stages[0].model_dump(), "max_new_tokens": 20, "stop": ()}


def test_a_fixed_number_of_slots_gives_way_to_a_ratio_or_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """No other side has such a budget: slots of a long span would be set against a quarter of its tokens."""
    encode = {"kind": "encode", "encoder": "day", "slots": 2, "precision": "int8"}
    given = {"input": {"path": "rows.jsonl"}, "target": {"model": "some"}}
    job = JobSpec.model_validate({**given, "stages": [encode, GENERATE, {"kind": "evaluate", "task": "qa"}]})
    with pytest.raises(typer.Exit) as refused:
        _spec(job, Path("rows.toml"), "night", None, "cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert refused.value.exit_code == 2 and "rows.toml: slots are so many" in said and "name a ratio" in said
    spec = _spec(job, Path("rows.toml"), "night", [3.0], "cpu")
    assert (spec.encoder, spec.ratio, spec.slots, spec.precision) == ("night", 3.0, None, "int8")
