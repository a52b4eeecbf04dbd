"""The methods without a model: what each keeps, and that it follows from the document alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compress_models import Compressing, text_of
from family_prompts import MODEL_FREE, best_first, prompt_of, prompts_of, ranking_of, spec_of, tokenising
from pydantic import ValidationError

from pipeline.compression.methods.chance import stream_of
from pipeline.compression.methods.shared import distinct, ranked
from pipeline.compression.prompt import Source
from pipeline.compression.registry import Method, build_method
from pipeline.models import ModelPool
from pipeline.stages import Result
from schemas.document import PromptParts

TEXT = " ".join(f"word{number} says {number * 7}." for number in range(60))
QUESTION = "Which ship left the port of Rotterdam?"
CONTEXTS = (
    "Apples and pears are the fruit of autumn. The apples are red.",
    "The Aurora left the port of Rotterdam on Monday. It carried apples. The ship was red.",
    "Trains leave from the station. Nobody knows when.",
)


def method_of(pool: ModelPool, name: str, **settings: Any) -> Method:
    return build_method(spec_of(name, **settings), pool, tokenising())


def spans(compressing: Compressing, method: str, *contexts: str, **settings: Any) -> list[tuple[int, int]]:
    (outcome,) = compressing(PromptParts(contexts=contexts), method=method, **settings)
    assert isinstance(outcome, Result), outcome
    kept = outcome.fields["kept"]
    return list(zip(kept[::2], kept[1::2], strict=True))


@pytest.mark.parametrize("rate", [0.07, 0.31, 0.5, 0.93])
def test_truncation_keeps_one_run_and_no_gaps(compressing: Compressing, rate: float) -> None:
    ((begin, end),) = spans(compressing, "truncation", TEXT, rate=rate)
    assert begin == 0 < end < len(TEXT)
    ((begin, end),) = spans(compressing, "truncation", TEXT, rate=rate, cut="head")
    assert 0 < begin < end == len(TEXT)
    (_, first), (second, end) = spans(compressing, "truncation", TEXT, rate=rate, cut="middle")
    assert abs(first - (len(TEXT) - second)) < 40
    assert end == len(TEXT)


def test_truncation_leaves_budget_rather_than_a_gap(compressing: Compressing) -> None:
    long = "internationalizationnotwithstanding"
    text = f"a b {long} c d e f g h"
    ((begin, end),) = spans(compressing, "truncation", text, target_tokens=6)
    assert (begin, text[begin:end]) == (0, "a b")
    assert len(spans(compressing, "random", text, target_tokens=6)) > 0


def test_truncation_runs_over_the_contexts_as_one_text(compressing: Compressing) -> None:
    ((begin, end),) = spans(compressing, "truncation", *CONTEXTS, rate=0.6)
    assert begin == 0
    assert CONTEXTS[0] == "\n\n".join(CONTEXTS)[begin:end][: len(CONTEXTS[0])]


def test_random_units_follow_from_seed_and_text(pool: ModelPool) -> None:
    one, other = prompts_of(PromptParts(contexts=(TEXT,)), PromptParts(contexts=(TEXT + " more",)))
    first = ranking_of(method_of(pool, "random"), one)[0].margins
    np.testing.assert_array_equal(ranking_of(method_of(pool, "random"), other, one)[1].margins, first)
    assert (ranking_of(method_of(pool, "random", seed=1), one)[0].margins != first).all()
    assert (ranking_of(method_of(pool, "random"), other)[0].margins[: len(first)] != first).all()
    assert 0 <= first.min() < 0.1 < 0.4 < first.mean() < 0.6 < 0.9 < first.max() < 1


RAW = [10461864257927814588, 1191985352588545708, 8552983408788564596]


def test_random_units_are_the_same_on_every_machine() -> None:
    assert stream_of(3, "some", "text").random_raw(3).tolist() == RAW


def test_bm25_takes_the_context_that_is_asked_for_then_its_sentences(pool: ModelPool) -> None:
    prompt = prompt_of(PromptParts(contexts=CONTEXTS, question=QUESTION))
    ranking = ranking_of(method_of(pool, "bm25"), prompt)[0]
    best = [text.strip() for text in best_first(prompt, ranking) if text.strip() != QUESTION]
    count = len(prompt.parts[1].places)
    assert set(best[:count]) == set(CONTEXTS[1].replace(".", " .").split())
    assert set(best[:10]) == {"The", "Aurora", "left", "the", "port", "of", "Rotterdam", "on", "Monday", "."}
    assert set(best[:4]) == {"left", "port", "Rotterdam", "of"}  # asked for; the other word that is stands thrice


def test_bm25_without_a_question_asks_for_all_words(pool: ModelPool) -> None:
    """What nothing else in the text mentions comes last, what is mentioned again first."""
    text = "Yellow cheese. The moon moves the tides. Green tea. Tides and moon. Old shoes. New hats. Red cars."
    prompt = prompt_of(PromptParts(contexts=(text,)))
    best = best_first(prompt, ranking_of(method_of(pool, "bm25"), prompt)[0])
    assert set(best[:10]) == {" The", " moon", " moves", " the", " tides", ".", " Tides", " and"}


def test_tfidf_keeps_what_is_rare(compressing: Compressing) -> None:
    text = "The cat sat on the mat. " * 9 + "The password is xylophone-42. " + "The cat sat on the mat. " * 9
    (outcome,) = compressing(PromptParts(contexts=(text,)), method="tfidf", rate=0.15)
    assert "password" in text_of(outcome) and "xylophone-42" in text_of(outcome)


def test_tfidf_takes_the_context_that_is_asked_for(compressing: Compressing) -> None:
    parts = PromptParts(contexts=CONTEXTS, question=QUESTION)
    (outcome,) = compressing(parts, method="tfidf", rate=0.65)
    assert CONTEXTS[1] in text_of(outcome)


@pytest.mark.parametrize("method", MODEL_FREE)
def test_a_document_at_several_rates_is_ranked_once(pool: ModelPool, method: str) -> None:
    parts = PromptParts(contexts=CONTEXTS, question=QUESTION)
    prompts = prompts_of(
        *(Source(parts, rate) for rate in (0.9, 0.8, 0.7)), spec=spec_of(method, rates=[0.9, 0.8, 0.7])
    )
    told: list[int] = []
    rankings = method_of(pool, method).score(prompts, told.append)
    assert told == [prompts[0].original]
    assert all(one.margins is rankings[0].margins for one in rankings)


def test_only_equal_parts_are_one_document() -> None:
    first, second = PromptParts(contexts=CONTEXTS), PromptParts(contexts=CONTEXTS[:2])
    prompts = prompts_of(Source(first, 0.3), Source(second, 0.3), Source(first, 0.5))
    some, which = distinct(prompts)
    assert which == [0, 1, 0]
    assert some == [prompts[0], prompts[1]]


def test_ranks_by_several_keys() -> None:
    assert ranked(np.array([1, 2, 1, 2]), np.array([5, 1, 6, 1])).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize(
    ("method", "settings"),
    [("truncation", {"cut": "both"}), ("random", {"seed": -1}), ("bm25", {"b": 1.5}), ("tfidf", {"model": "x"}),
     ("bm25", {"cut": "head"}), ("llmlingua", {"rank_contexts_by": "question"}), ("llmlingua", {"skim": 1.0}),
     ("longllmlingua", {"delta_tau": -0.1}), ("selective-context", {"importance": "tfidf"})],
)  # fmt: skip
def test_an_option_of_another_method_or_out_of_range_is_an_error(method: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        spec_of(method, **settings)
