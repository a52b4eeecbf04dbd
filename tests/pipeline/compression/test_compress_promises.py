"""The promises of the stage for every unit, tokenizer, budget and option, on any text; no model scores here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compress_models import TOKENIZERS, WORDS
from compress_shrink import check, compressed, result, shrink
from hypothesis import example, given
from hypothesis import strategies as st
from prompt_draws import mostly_cut, prompts, quick, rate_of, shares

from pipeline.compression.marking import build_marking
from pipeline.compression.preparing import Preparing
from pipeline.compression.prompt import Prompt, Source
from pipeline.compression.reassembly import Fitted, fit
from pipeline.compression.recovering import recover
from pipeline.compression.registry import Ranking
from pipeline.compression.tokens import Tokenising
from pipeline.models import load_tokenizer
from pipeline.stages import Outcome, Refusal, Result
from schemas.compress import RandomSpec
from schemas.document import PromptParts

units = st.sampled_from(["token", "word", "phrase", "sentence"])


def test_promises_hold_for_every_unit_and_tokenizer(tiny: str, counters: dict[str, str]) -> None:
    def cut(parts: PromptParts, share: float, unit: str, kind: str, hierarchy: bool) -> Outcome:
        target = counters.get(kind, tiny)
        counting = Tokenising(load_tokenizer(target))
        outcome = shrink(target, parts, rate=rate_of(counting, parts, share), unit=unit, hierarchy=hierarchy)
        check(parts, outcome)
        if isinstance(outcome, Result):
            inner = load_tokenizer(target).backend_tokenizer
            assert outcome.tokens_out == len(inner.encode(compressed(outcome), add_special_tokens=False))
            assert compressed(outcome).startswith(parts.instruction)
            assert compressed(outcome).endswith(parts.question)
        return outcome

    mostly_cut(cut, 60, prompts, shares, units, st.sampled_from(["tiny", *TOKENIZERS]), st.booleans())


@quick(60)
@example(parts=PromptParts(contexts=("parallel to his own. On the one hand, nothing.",)), rate=0.6, unit="sentence")
@example(
    parts=PromptParts("0ࠀࠀ", ("word " * 15 + "12*3=36 " * 6 + "你好。 你好。 👨‍👩‍👧‍👦   ",), "\x80ࠀࠀ"),
    rate=0.1015625,
    unit="token",
)
@given(parts=prompts, rate=st.floats(0.1, 1), unit=units)
def test_no_removed_unit_that_costs_no_more_than_the_room_is_left_out(
    tiny: str, parts: PromptParts, rate: float, unit: str
) -> None:
    """What a budget of which less than 97% is used could still hold: nothing that is as cheap as planned."""
    spec = RandomSpec.model_validate({"kind": "compress", "method": "random", "rate": rate, "unit": unit})
    tokenising = Tokenising(load_tokenizer(tiny))
    (prompt,) = Preparing(spec, tokenising, tokenising, build_marking(spec), True).prepare([Source(parts)])
    if not isinstance(prompt, Prompt):
        return
    ranking = Ranking(np.random.default_rng(0).random(len(prompt.costs())))
    (fitted,) = fit([prompt], [ranking], tokenising)
    if isinstance(fitted, Refusal) or fitted.tokens >= 0.97 * prompt.budget:
        return
    assert isinstance(fitted, Fitted)
    for unit_ in np.flatnonzero(~fitted.kept & (prompt.costs() <= prompt.budget - fitted.tokens)).tolist():
        more = fitted.kept.copy()
        more[unit_] = True
        text = "".join(prompt.text[a:b] for a, b in prompt.layout.spans(more).tolist())
        tokens = tokenising.count([text])[0]
        says_nothing = text.split() == fitted.text.split()  # white space alone
        assert tokens > prompt.budget or tokens == fitted.tokens or says_nothing


@pytest.mark.parametrize("unit", ["token", "word", "phrase", "sentence"])
def test_nothing_changes_at_rate_1(tiny: str, unit: str) -> None:
    parts = PromptParts("Do it.", (WORDS, " \n", "你好。"), "Why?")
    outcome = shrink(tiny, parts, rate=1.0, unit=unit)
    assert compressed(outcome) == parts.render()
    assert result(outcome).fields["copied"]


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.33, 0.5, 0.75, 0.98])
@pytest.mark.parametrize("unit", ["token", "word", "phrase", "sentence"])
def test_the_budget_is_used(tiny: str, rate: float, unit: str) -> None:
    parts = PromptParts(contexts=tuple(f"{n}. {WORDS}" for n in range(8)))
    outcome = result(shrink(tiny, parts, rate=rate, unit=unit))
    check(parts, outcome)
    assert outcome.tokens_asked is not None
    assert outcome.tokens_out >= min(0.97 * outcome.tokens_asked, outcome.tokens_asked - 20)


def test_a_megabyte_of_one_character(tiny: str) -> None:
    for unit in ("word", "sentence"):
        parts = PromptParts(contexts=("a" * 10**6,))
        outcome = shrink(tiny, parts, rate=0.5, unit=unit)
        check(parts, outcome)
        assert result(outcome).tokens_out >= 0.97 * (result(outcome).tokens_asked or 0)


LONG = PromptParts(
    "Answer briefly.",
    ("Ada Lovelace wrote the first program, for the analytical engine of Charles Babbage. " * 2, WORDS[:400]),
    "Who wrote it?",
)


def test_the_most_important_removed_phrases_are_listed_before_the_question(tiny: str) -> None:
    outcome = result(shrink(tiny, LONG, method="tfidf", rate=0.6, removed_phrases=3))
    head, _, listing = compressed(outcome).removesuffix("\n\nWho wrote it?").rpartition("\n\nLeft out above: ")
    phrases = listing.split("; ")
    assert 1 <= len(phrases) <= 3
    assert all(phrase in " ".join(LONG.render().split()) and phrase not in head for phrase in phrases)
    check(LONG, outcome)
    added = slice(*outcome.fields["listed"])
    assert compressed(outcome)[added] == f"\n\nLeft out above: {listing}"
    quoted = " ".join(compressed(outcome)[: added.start].split()[-6:])
    assert recover(LONG.render(), outcome.fields["kept"], quoted) in LONG.render()
    assert 0.9 * (outcome.tokens_asked or 0) <= outcome.tokens_out <= (outcome.tokens_asked or 0)


def test_no_list_where_there_is_no_room_or_nothing_to_list(tiny: str) -> None:
    for rate in (0.12, 1.0):
        outcome = shrink(tiny, LONG, removed_phrases=3, rate=rate)
        check(LONG, outcome)
        assert isinstance(outcome, Refusal) or "Left out" not in compressed(outcome)


def test_the_budget_holds_with_a_list(tiny: str) -> None:
    counting = Tokenising(load_tokenizer(tiny))

    def cut(parts: PromptParts, share: float, phrases: int) -> Outcome:
        outcome = shrink(tiny, parts, rate=rate_of(counting, parts, share), removed_phrases=phrases)
        if isinstance(outcome, Result):
            assert outcome.tokens_out <= (outcome.tokens_asked or 0)
            assert outcome.tokens_out == counting.count([compressed(outcome)])[0]
            assert compressed(outcome).endswith(parts.question)
            check(parts, outcome)
            begin, end = outcome.fields["listed"] or (0, 0)
            assert ("Left out above: " in compressed(outcome)[begin:end]) == (end > begin)
        return outcome

    mostly_cut(cut, 60, prompts, shares, st.integers(1, 5))


def test_what_a_method_does_not_want_comes_last_and_what_it_forbids_never(tiny: str) -> None:
    spec = RandomSpec.model_validate({"kind": "compress", "method": "random", "target_tokens": 60})
    tokenising = Tokenising(load_tokenizer(tiny))
    parts = PromptParts(contexts=("one two three", WORDS[:300], "seven eight nine"))
    (prompt,) = Preparing(spec, tokenising, tokenising, build_marking(spec), True).prepare([Source(parts)])
    assert isinstance(prompt, Prompt)
    margins = np.array([1.0, -np.inf, np.nan])[prompt.layout.parts]
    (fitted,) = fit([prompt], [Ranking(margins)], tokenising)
    assert isinstance(fitted, Fitted)
    assert fitted.text.startswith("one two three\n\nQuestion")
    assert "seven" not in fitted.text
    assert fitted.tokens >= 0.97 * 60
    (small,) = fit([replace(prompt, budget=8)], [Ranking(margins)], tokenising)
    assert isinstance(small, Fitted)
    assert set(small.text.split()) <= {"one", "two", "three"}


@pytest.mark.parametrize("unit", ["phrase", "sentence"])
def test_a_prompt_of_one_long_unit_keeps_its_first_words(tiny: str, unit: str) -> None:
    parts = PromptParts(contexts=("  The quick brown fox jumps over the lazy dog and the rivers.",))
    outcome = shrink(tiny, parts, target_tokens=5, unit=unit)
    check(parts, outcome)
    assert parts.contexts[0].strip().startswith(compressed(outcome)) or unit == "phrase"
    assert result(outcome).tokens_out >= 3
