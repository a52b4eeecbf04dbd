"""Metrics against worked values and against the packages that define them."""

from __future__ import annotations

import importlib
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import overlap
from pipeline.evaluation.metrics import contains_answer, normalised, token_f1
from pipeline.evaluation.overlap import Bleu, MetricsMissing, Rouge, Words, longest_common, versions
from pipeline.evaluation.scoring import NoReferenceError, Scorer
from schemas.evaluate import EvaluateSpec

ROUGE = ["rouge1", "rouge2", "rougeL"]
TEXTS = [
    "The committee agreed to record fifteen minutes of speech and to hire two annotators.",
    "They agreed that fifteen minutes were recorded, and hired annotators for it!",
    "Nothing was decided; snake_case, 3.5% and U.S.-made things were said.",
    "",
    "the the the",
]


def scores(answer: str, generated: str, **settings: object) -> dict[str, object]:
    return Scorer(EvaluateSpec.model_validate({"kind": "evaluate", **settings}))(generated, answer, "")


def test_normalisation_is_that_of_squad() -> None:
    assert normalised("The  U.S. (an old) theatre, A!") == "us old theatre"


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [("the cat sat", ["a cat sat down"], 0.8), ("x", ["y", "x y"], 2 / 3), ("the", ["a"], 1.0), ("", ["cat"], 0.0)],
)
def test_token_f1_counts_common_words(said: str, right: list[str], f1: float) -> None:
    assert token_f1(said, right) == pytest.approx(f1)


def test_an_answer_may_stand_inside_what_is_said() -> None:
    assert contains_answer("It was Wilhelm Conrad Röntgen.", ["Einstein", "wilhelm conrad röntgen"]) == 1.0
    assert contains_answer("Röntgen", ["Wilhelm Conrad Röntgen"]) == 0.0


@pytest.mark.parametrize("said", TEXTS)
@pytest.mark.parametrize("right", [TEXTS[:1], TEXTS[1:3], TEXTS[4:]])
def test_rouge_is_that_of_rouge_score(said: str, right: list[str]) -> None:
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer(ROUGE, use_stemmer=True)
    expected = {kind: score.fmeasure for kind, score in scorer.score_multi(right, said).items()}
    assert Rouge(ROUGE)(said, right) == pytest.approx(expected)


def test_rouge_sees_words_of_all_scripts() -> None:
    assert Words().tokenize("Los Niños 银行在右边 مكتبة x_y") == ["los", "niño", *"银行在右边", "مكتبة", "x", "y"]
    assert Rouge(ROUGE)("银行在左边", ["银行在右边"]) == pytest.approx({"rouge1": 0.8, "rouge2": 0.5, "rougeL": 0.8})


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abcd"), max_size=40))
def test_the_longest_common_subsequence_is_that_of_the_textbook(one: list[str], other: list[str]) -> None:
    row = [0] * (len(one) + 1)
    for letter in other:
        above = row
        row = [0]
        for place, mine in enumerate(one):
            row.append(above[place] + 1 if mine == letter else max(above[place + 1], row[place]))
    assert longest_common(one, other) == row[-1]


def test_rouge_of_two_very_long_texts_takes_no_minutes() -> None:
    draw = random.Random(1)
    words = [f"w{draw.randrange(500)}" for _ in range(30_000)]
    assert Rouge(["rougeL"])(" ".join(words), [" ".join(words[::2])])["rougeL"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("said", TEXTS)
def test_bleu_is_that_of_sacrebleu(said: str) -> None:
    right = TEXTS[:2]
    expected = importlib.import_module("sacrebleu").sentence_bleu(said, right).score
    value, counts = Bleu()(said, right)
    assert value == pytest.approx(expected / 100)
    assert len(counts) == 10 and counts[0] >= counts[6]


def test_only_what_was_asked_for_is_written() -> None:
    row = scores("Paris", "Answer: paris!", task="qa", metrics=["exact_match"])
    assert row == {**dict.fromkeys(row), "prediction": "paris!", "exact_match": 1.0}


def test_no_answer_at_all_is_wrong_not_missing() -> None:
    assert scores("12", "I cannot say.", task="gsm8k") | {"prediction": None, "exact_match": 0.0} == scores(
        "12", "I cannot say.", task="gsm8k"
    )
    summary = scores("a summary", "", task="summary")
    assert [summary[metric] for metric in (*ROUGE, "bleu4")] == [0.0] * 4
    assert scores('[""]', "", task="qa")["exact_match"] == 1.0  # SQuAD 2.0: there is no answer, and none was given


def test_numbers_are_equal_however_they_are_written() -> None:
    for right in ("1,200", "$1200.00", "Steps.\n#### 1200", '["7", "1200"]'):
        assert scores(right, "The answer is $1,200.", task="gsm8k")["exact_match"] == 1.0
    assert scores("1200", "The answer is 12000.", task="gsm8k")["exact_match"] == 0.0


def test_a_reference_without_a_number_is_no_reference_for_numbers() -> None:
    with pytest.raises(NoReferenceError, match="holds no number: 'many'"):
        scores("many", "The answer is 3.", task="gsm8k")


def test_without_a_task_the_whole_text_is_the_answer() -> None:
    row = scores("a b\nc", " a b\nc ", metrics=["exact_match", "bleu4"])
    assert (row["prediction"], row["exact_match"]) == ("a b\nc", 1.0)


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "PACKAGES", {"bleu": "sacrebleu-of-nowhere"})
    assert versions(["exact_match", "rouge1"]) == []
    with pytest.raises(MetricsMissing, match="pip install sacrebleu rouge-score"):
        versions(["bleu4"])


ENDLESS = {
    "one letter": "a", "spaces": " ", "line breaks": "\n", "digits": "7", "thousands": "1,", "markers": "answer is ",
    "boxes": "\\boxed{", "questions": "\nQuestion", "options": "\n(A) ", "full stops": ". ", "words": "pen ",
    "brackets": "[", "marked numbers": "The answer is 4 = ", "chinese": "银",
}  # fmt: skip


@pytest.mark.parametrize("piece", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("task", ["gsm8k", "bbh", "qa", "summary"])
def test_no_text_takes_for_ever(task: str, piece: str) -> None:
    """A model may repeat itself to its limit, and a document may be anything: what is quadratic takes minutes."""
    text = piece * (30_000 // len(piece))
    scorer = Scorer(EvaluateSpec.model_validate({"kind": "evaluate", "task": task}))
    began = time.process_time()
    for answer in ("(A)", "12", "word"):
        if task != "gsm8k" or answer == "12":
            row = scorer(text, answer, text)
            assert row["exact_match" if task != "summary" else "rouge1"] is not None
    assert time.process_time() - began < 10
