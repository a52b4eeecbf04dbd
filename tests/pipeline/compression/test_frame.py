"""The frame of demonstrations: what it is of which texts, and that it is the last to go."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress_models import Compressing, text_of
from compress_shrink import check
from family_prompts import prompt_of, ranking_of, spec_of, tokenising, units_of
from hypothesis import strategies as st
from prompt_draws import mostly_cut, rate_of, shares

from pipeline.compression.budget import Rates
from pipeline.compression.frame import frame_of, frames
from pipeline.compression.methods.llmlingua import plan_of
from pipeline.compression.registry import build_method
from pipeline.compression.selection import margins
from pipeline.compression.token_level import skimmed
from pipeline.models import ModelPool
from pipeline.stages import Outcome
from schemas.document import PromptParts

SUMS = (
    "Question: Sam has 3 boxes of 12 pens. How many pens has he?\nLet's think step by step.\n"
    "He has 3*12=36 pens.\nThe answer is 36.",
    "Question: Ada ran 5 miles on each of 4 days. How far did she run?\nLet's think step by step.\n"
    "She ran 5*4=20 miles in all.\nThe answer is 20.",
    "Question: A pie is cut into 8 pieces and 3 are eaten. What is left?\nLet's think step by step.\n"
    "There are 8-3=5 left.\nThe answer is 5.",
)
DATES = (
    "Q: Today is Christmas Eve of 1937. What is the date 10 days ago?\nOptions:\n(A) 12/14/2026\n(B) 12/14/1937\n"
    "A: Let's think step by step.\nToday is December 24, 1937. 10 days before is 12/14/1937. So the answer is (B).",
    "Q: Tomorrow is 11/12/2019. What is the date one year ago?\nOptions:\n(A) 11/11/2018\n(B) 09/04/2018\n"
    "A: Let's think step by step.\nIf tomorrow is 11/12/2019, today is 11/11/2019. So the answer is (A).",
    "Q: Jane married on Jan 2, 1958, five years ago. What is the date?\nOptions:\n(A) 01/03/1963\n(B) 01/02/1963\n"
    "A: Let's think step by step.\nIt is five years after 1958, which is 1963. So the answer is (B).",
)


def framed(*texts: str) -> list[list[str]]:
    """What is of the frame in each text."""
    found = zip(texts, frames(texts), strict=True)
    return [[text[begin:end] for begin, end in spans.tolist()] for text, spans in found]


def test_worked_sums() -> None:
    assert framed(*SUMS)[0] == ["Question:", "Let's think step by step.\n", "The answer is 36."]


def test_an_answer_behind_the_reasoning() -> None:
    assert framed(*DATES)[1] == ["Q:", "Options:\n", "A: Let's think step by step.\n", " So the answer is (A)."]


def test_examples_of_gsm8k() -> None:
    for row in Path("examples/gsm8k.jsonl").read_text(encoding="utf-8").splitlines():
        for text, found in zip(contexts := json.loads(row)["contexts"], framed(*contexts), strict=True):
            assert found[0].startswith("Question:") and len(found[0].split()) <= 2
            assert "Let's think step by step.\n" in found
            assert found[-1] == "The answer is " + text.rpartition(" ")[2]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("A b c d e",), [[]]),
        (("A b c d e", "A b x y z"), [["A b"], ["A b"]]),
        (("A b c d e", "A x y z z"), [[], []]),  # one word is too little
        (("A: c d e", "A: x y z"), [["A:"], ["A:"]]),
        (("A:b c d", "A:c d e"), [[], []]),  # no whole word
        (("A b c d", "A b x y"), [["A b c d"], ["A b x y"]]),  # as many words follow
        (("A b 1\nA b c", "x\nA b 2"), [["A b 1\nA b c"], ["A b 2"]]),  # every such line
        (("A b 1", "A b 2", "c", "d"), [[], [], [], []]),  # half is not most
        (("A b 1", "A b 2", "c", "A b 3", "d"), [["A b 1"], ["A b 2"], [], ["A b 3"], []]),
        (("A b 1", "A b 1"), [[], []]),  # the same text twice
        (("A b 1", "A b 1", "c", "d"), [[], [], [], []]),
        (("A b 1", "A b 1", "A b 2"), [["A b 1"], ["A b 1"], ["A b 2"]]),
        (("A b 1\nA b 2", "c"), [[], []]),  # twice in one text
        (("", " \n\t\n"), [[], []]),
        ((), []),
        (("  A  b c d e\n", "A b\tx y z\n\n"), [["  A  b"], ["A b"]]),  # white space may differ
    ],
)
def test_what_most_texts_have_in_common(texts: tuple[str, ...], expected: list[list[str]]) -> None:
    assert framed(*texts) == expected


def test_the_longest_beginning_of_each_line() -> None:
    texts = ("a b c 1 2 3 4", "a b c 5 6 7 8", "a b d 9 9 9 9")
    assert framed(*texts) == [["a b c"], ["a b c"], ["a b"]]


def test_lines_of_crlf() -> None:
    found = framed(*(text.replace("\n", "\r\n") for text in SUMS))
    assert found[0] == ["Question:", "Let's think step by step.\r\n", "The answer is 36."]
    mixed = framed(SUMS[0].replace("\n", "\r\n"), *SUMS[1:])
    assert mixed == [found[0], *framed(*SUMS)[1:]]


def test_scripts_without_spaces() -> None:
    texts = ("问题：小明有三个盒子。\n解：三乘以五。\n答案是15。", "问题：一只猫吃了两条鱼。\n解：二减一。\n答案是1。")
    assert framed(*texts)[0] == ["问题：", "解：", "答案是15。"]
    prompt = prompt_of(PromptParts(contexts=texts))
    frame = frame_of(prompt)
    kept = "".join(unit for unit, own in zip(units(prompt), frame.tolist(), strict=True) if own)
    assert "".join(kept.split()) == "".join("".join(one) for one in framed(*texts)).replace("\n", "")


def test_a_hundred_passages_of_ten_megabytes() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(5000)])
    shared = "Passage: here is what they say of it\n" + "the very same words stand in this line " * 400 + "\n"
    texts = [shared + "\n".join(" ".join(rng.choice(words, 12)) for _ in range(600)) for _ in range(199)]
    texts.append("one line " * 10**5)
    begun = time.process_time()
    found = framed(*texts)
    assert time.process_time() - begun < 20
    assert sum(map(len, texts)) > 10**7
    assert found[0] == [shared] and found[-1] == []


def units(prompt: Any) -> list[str]:
    return [unit for part in prompt.parts for unit in units_of(part)]


PARTS = PromptParts("Solve it.", SUMS, "Question: Who has 4 pens?")


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("word", ["Question", ":", "Let's", "think", "step", "by", "step", ".", "The", "answer", "is", "36", "."]),
        ("phrase", ["Question:", "Let's think step by step.", "The answer is 36."]),
        ("sentence", ["Question: Sam has 3 boxes of 12 pens.", "Let's think step by step.", "The answer is 36."]),
    ],
)
def test_units_are_of_it_whose_beginning_is(unit: str, expected: list[str]) -> None:
    prompt = prompt_of(PARTS, unit=unit)
    frame = frame_of(prompt)
    inside = [text.strip() for text, own in zip(units(prompt), frame.tolist(), strict=True) if own]
    assert inside[: len(expected)] == expected
    assert not frame[np.isin(prompt.layout.parts, [0, 4])].any()  # contexts alone


def test_a_segment_keeps_its_frame_first_and_of_that_the_best() -> None:
    scores, costs, rows = np.array([9.0, 1.0, 2.0, 8.0]), np.array([1, 2, 2, 3]), np.zeros(4, np.int64)
    frame = np.array([False, True, True, False])
    for allowed, kept, left in [(3.0, [2], 1.0), (4.5, [1, 2], 0.5), (5.0, [0, 1, 2], 0.0), (9.0, [0, 1, 2, 3], 1.0)]:
        above, rest = margins(scores, costs, rows, np.array([allowed]), frame)
        assert np.flatnonzero(above > 0).tolist() == kept
        assert rest.tolist() == [left]
    plain, _ = margins(scores, costs, rows, np.array([4.0]))
    np.testing.assert_array_equal(margins(scores, costs, rows, np.array([4.0]), np.zeros(4, bool))[0], plain)


@pytest.mark.parametrize("method", ["llmlingua", "longllmlingua"])
@pytest.mark.parametrize(
    "settings", [{}, {"iterative": False}, {"skim": 0.5}, {"iterative_size": 8}, {"importance": "surprisal-tfidf"}]
)
def test_it_ranks_above_all_else_that_is_taken(pool: ModelPool, tiny: str, method: str, settings: Any) -> None:
    prompt = prompt_of(PARTS, rate=0.5)
    spec = spec_of(method, model=tiny, frame=True, budget_controller=False, **settings)
    (ranking,) = ranking_of(build_method(spec, pool, tokenising()), prompt)
    free, frame = ~prompt.forced(), frame_of(prompt)
    assert frame.any()
    assert ranking.margins[frame].min() > ranking.margins[free & ~frame].max()
    assert np.isfinite(ranking.margins[free]).all()


def test_contexts_that_are_not_taken_are_gone_with_their_frame(pool: ModelPool, tiny: str) -> None:
    prompt = prompt_of(PARTS, rate=0.4)
    method = build_method(spec_of("llmlingua", model=tiny, frame=True, granular_k=1.0), pool, tokenising())
    (ranking,) = ranking_of(method, prompt)
    taken = [bool(np.isfinite(ranking.margins[prompt.layout.parts == place]).any()) for place in (1, 2, 3)]
    assert 0 < sum(taken) < 3


def test_skimming_leaves_it() -> None:
    prompt = prompt_of(PARTS, rate=0.5)
    plan = plan_of(prompt, [1, 2, 3], Rates(1.0, 0.2, 1.0))
    gone = skimmed(prompt, plan, np.zeros(len(prompt.costs())), 0.8)
    frame = frame_of(prompt)
    assert (gone & frame).any()
    assert not (skimmed(prompt, replace(plan, frame=frame), np.zeros(len(frame)), 0.8) & frame).any()


@pytest.mark.parametrize("method", ["llmlingua", "longllmlingua"])
def test_its_words_survive_where_they_do_not_without_it(compressing: Compressing, method: str) -> None:
    settings = {"method": method, "rate": 0.55, "granular_k": 2.0}
    (without,), (within,) = compressing(PARTS, **settings), compressing(PARTS, frame=True, **settings)
    contexts = text_of(within).split("\n\n")[1:-1]
    assert contexts
    for context in contexts:
        assert context.startswith("Question:") and "\nLet's think step by step." in context
        assert "\nThe answer is " in context and context.endswith(".")
    assert "The answer is " not in text_of(without)


@pytest.mark.parametrize("settings", [{"method": "llmlingua"}, {"method": "longllmlingua", "reorder": False}])
def test_budgets_hold_where_it_is_most_of_the_text(compressing: Compressing, settings: dict[str, Any]) -> None:
    def cut(contexts: list[str], share: float, asked: str, tau: float, size: int) -> Outcome:
        parts = PromptParts("Do it.", tuple(contexts), asked)
        wanted = {"tau_question": tau, "iterative_size": size, "rate": rate_of(tokenising(), parts, share)}
        (outcome,) = compressing(parts, frame=True, **wanted, **settings)
        check(parts, outcome)
        return outcome

    lines = ["Question: who is", "The answer is 12.", "答案是15。", "Let us see. ", "\n", "\r\n", "A:", "it is 3*4=12"]
    texts = st.lists(st.sampled_from(lines), min_size=3, max_size=8).map("\n".join)
    asked = st.sampled_from(["", "Question: how many are there?"])
    some = st.lists(texts, min_size=2, max_size=5)
    mostly_cut(cut, 30, some, shares, asked, st.sampled_from([0.5, 1.0]), st.sampled_from([5, 100]))


def test_off_it_leaves_identities_as_they_were() -> None:
    off, on = (spec_of("llmlingua", **settings) for settings in ({"frame": False}, {"frame": True}))
    assert "frame" not in off.output_settings()
    assert off.output_settings() == spec_of("llmlingua").output_settings()
    assert on.output_settings() == {**off.output_settings(), "frame": True}
