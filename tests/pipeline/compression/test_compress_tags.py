"""Tagged contexts: own rates, verbatim passages, nothing lost whatever stands between the tags."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from compress_models import WORDS
from compress_shrink import check, compressed, result, shrink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.compression.marked import UnmarkableError
from pipeline.compression.tags import untagged
from pipeline.compression.tokens import Tokenising
from pipeline.models import load_tokenizer
from pipeline.stages import Refusal, Result
from schemas.document import PromptParts

CODE = "if (a < b && c > d) { return <x y='</p>'/>; }\n\t<!-- é -->"


@pytest.mark.parametrize(
    ("source", "text", "rates"),
    [
        ("a<llmlingua, rate=0.5>b</llmlingua>c", "abc", [("b", 0.5)]),
        ("<llmlingua, compress=False, rate=0.5>b</llmlingua>", "b", [("b", 1.0)]),
        ("<llmlingua,rate = .5 , compress=true>b</llmlingua >", "b", [("b", 0.5)]),
        ("<llmlingua>b < c <b></llmlingua>", "b < c <b>", []),
        (
            "<llmlingua, rate=0.5>o <llmlingua, compress=False>i</llmlingua> <llmlingua>n</llmlingua> p</llmlingua>",
            "o i n p", [("o ", 0.5), ("i", 1.0), (" ", 0.5), (" p", 0.5)],
        ),
        ("<llmlinguas> and </llmlingua2> <LLMLingua>", "<llmlinguas> and </llmlingua2> <LLMLingua>", []),
        (f"<llmlingua, compress=False>{CODE}</llmlingua>", CODE, [(CODE, 1.0)]),
        ("<llmlingua, rate=0.5></llmlingua>", "", []),
    ],
)  # fmt: skip
def test_tags_go_and_what_they_say_stays(source: str, text: str, rates: list[tuple[str, float]]) -> None:
    marked = untagged(source)
    assert marked.text == text
    assert [(text[own.begin : own.end], own.rate) for own in marked.rates] == rates
    assert marked.markup[:, 1].sum() == len(source) - len(text)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\nbc <llmlingua, rate=0.5>d", r"line 2, column 4: a tag is never closed; write <llmlingua, rate=0.5> or"),
        ("d</llmlingua>", "line 1, column 2: a tag closes a tag that is not open"),
        ("<llmlingua, rate=1.5>d</llmlingua>", "has a rate that is no number above 0 and at most 1"),
        ("<llmlingua, rate=0>d</llmlingua>", "has a rate that is no number above 0"),
        ("<llmlingua, rate=high>d</llmlingua>", "has a rate that is no number"),
        ("<llmlingua, compress=no>d</llmlingua>", "something else than True or False"),
        ("<llmlingua, rate=0.5, rate=0.6>d</llmlingua>", "says rate twice"),
        ("<llmlingua rate=0.5>d</llmlingua>", "is not written right"),
        ("<llmlingua, speed=0.5>d</llmlingua>", "is not written right"),
        ("<llmlingua, rate=0.5 <b>d</llmlingua>", "is not written right"),
        ("<llmlingua, rate=0.5", "is not written right"),
    ],
)
def test_a_tag_that_is_not_right_is_named(source: str, message: str) -> None:
    with pytest.raises(UnmarkableError, match=message) as error:
        untagged(source)
    assert error.value.code == "bad_tag"


def test_a_bad_tag_refuses_its_document_and_names_the_context(tiny: str) -> None:
    outcome = shrink(tiny, PromptParts(contexts=("fine", "<llmlingua>")), rate=0.9, structure="tags")
    assert isinstance(outcome, Refusal)
    assert outcome.reason.startswith("contexts[1], line 1, column 1: a tag is never closed")


@pytest.mark.parametrize("rate", [0.3, 0.6, 1.0])
def test_verbatim_passages_and_the_map(tiny: str, rate: float) -> None:
    tagged = f"{WORDS}<llmlingua, compress=False>{CODE}</llmlingua> and <llmlingua, rate=0.2>{WORDS}</llmlingua>"
    parts = PromptParts("Go.", ("<llmlingua></llmlingua>", tagged, "<llmlingua, rate=0.5></llmlingua>"), "Why?")
    outcome = shrink(tiny, parts, rate=rate, structure="tags")
    check(parts, outcome)
    assert CODE in compressed(outcome)
    assert "llmlingua" not in compressed(outcome)


def test_regions_keep_their_shares_and_shrink_and_grow_together(tiny: str) -> None:
    tokenising = Tokenising(load_tokenizer(tiny))
    low, high, free = WORDS, WORDS.upper(), WORDS[::-1]
    context = f"<llmlingua, rate=0.2>{low}</llmlingua><llmlingua, rate=0.6>{high}</llmlingua>{free}"
    parts = PromptParts(contexts=(context,))
    edges = [context.index(WORDS), context.index(high), context.index(free), len(context)]
    sizes = tokenising.count([low, high, free])

    def shares(**budget: Any) -> list[float]:
        outcome = result(shrink(tiny, parts, structure="tags", **budget))
        kept = outcome.fields["kept"]
        spans = list(zip(kept[::2], kept[1::2], strict=True))
        texts = [
            "".join(context[max(a, begin) : min(b, end)] for a, b in spans if a < end and b > begin)
            for begin, end in itertools.pairwise(edges)
        ]
        return [count / size for count, size in zip(tokenising.count(texts), sizes, strict=True)]

    assert shares(rate=1.0) == pytest.approx([0.2, 0.6, 1.0], abs=0.06)
    assert shares(rate=0.5) == pytest.approx([0.2, 0.6, 0.5], abs=0.06)
    small = shares(target_tokens=sum(sizes) // 5)
    assert small[1] / small[0] == pytest.approx(3, abs=0.9)
    large = shares(target_tokens=sum(sizes) * 3 // 4)
    assert 0.2 < large[0] < 0.5
    assert 0.6 < large[1] < 1


pieces = st.sampled_from(["word ", "12*3=36 ", "a < b ", "<b>x</b> ", "你好", "\n\n", "</llm", "é", "<llmlinguax> "])
tags = st.sampled_from(["", ", rate=0.3", ", compress=False", ", rate=0.9, compress=True", ", compress=True, rate=1"])
trees = st.recursive(
    st.lists(pieces, max_size=6).map("".join),
    lambda inner: st.lists(st.tuples(tags, inner), max_size=3).map(
        lambda made: "".join(f"<llmlingua{tag}>{text}</llmlingua> " for tag, text in made)
    ),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(trees, min_size=1, max_size=3), st.floats(0.02, 1), st.sampled_from(["word", "token", "sentence"]))
def test_promises_hold_for_any_tags(tiny: str, contexts: list[str], rate: float, unit: str) -> None:
    parts = PromptParts("Go.", tuple(contexts), "")
    outcome = shrink(tiny, parts, rate=rate, structure="tags", unit=unit)
    check(parts, outcome)
    if isinstance(outcome, Result):
        for marked in map(untagged, contexts):
            assert all(marked.text[a:b] in compressed(outcome) for a, b in marked.protected.tolist())


def test_verbatim_numbers_do_not_run_into_the_words_before_them(tiny: str) -> None:
    context = " ".join(f"{n} words <llmlingua, compress=False>{n + 1}</llmlingua> and" for n in range(100, 160, 2))
    outcome = shrink(tiny, PromptParts(contexts=(context,)), rate=0.8, structure="tags", keep={"digits": True})
    assert re.findall(r"\d+", compressed(outcome)) == [str(number) for number in range(100, 160)]
