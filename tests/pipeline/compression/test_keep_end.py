"""``keep.end``: the end of the last context stays as it is, up to a share of the budget."""

from __future__ import annotations

from typing import Any

import pytest
from compress_shrink import check, compressed, result, shrink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_frame import DATES, SUMS

from pipeline.stages import Refusal
from schemas.compress import Keep
from schemas.document import PromptParts

SHOTS = PromptParts("Answer the question.", SUMS, "Question: What is 2*2?\nLet's think step by step.")


def end_of(parts: PromptParts, kept: list[int]) -> str:
    """What is kept of the last context without a gap up to its end."""
    text = parts.contexts[-1]
    begin = parts.render().rindex(text)
    for a, b in zip(kept[::2], kept[1::2], strict=True):
        if a <= begin + len(text) - 1 < b:
            return text[max(0, a - begin) :]
    return ""


@pytest.mark.parametrize("method", ["llmlingua", "longllmlingua", "selective-context", "bm25", "truncation", "random"])
def test_a_share_of_the_budget_goes_to_the_end(tiny: str, method: str) -> None:
    def kept_end(**how: Any) -> str:
        outcome = shrink(tiny, SHOTS, method=method, **how)
        check(SHOTS, outcome)
        return end_of(SHOTS, result(outcome).fields["kept"])

    most, some = (kept_end(rate=0.6, keep={"end": share}) for share in (1.0, 0.1))
    assert most.endswith("What is left?\nLet's think step by step.\nThere are 8-3=5 left.\nThe answer is 5.")
    assert some.endswith("The answer is 5.") and len(some) <= len(most)


def test_it_begins_with_a_sentence_or_else_with_a_word(tiny: str) -> None:
    parts = PromptParts("", (DATES[0], DATES[1]), "")
    rates = [number / 100 for number in range(4, 60)]
    outcomes = [shrink(tiny, parts, rate=rate, keep={"end": 1.0}) for rate in rates]
    ends = {end_of(parts, result(outcome).fields["kept"]) for outcome in outcomes}
    assert {" So the answer is (A).", "\nIf tomorrow is 11/12/2019, today is 11/11/2019. So the answer is (A)."} <= ends
    whole = PromptParts("", ("one two three four five six seven eight nine ten",), "")
    end = end_of(whole, result(shrink(tiny, whole, rate=0.5, keep={"end": 1.0})).fields["kept"])
    assert end and whole.contexts[0].endswith(end)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(share=st.floats(0, 1), rate=st.floats(0.1, 1), unit=st.sampled_from(["token", "word", "phrase", "sentence"]))
def test_it_never_costs_the_budget(tiny: str, share: float, rate: float, unit: str) -> None:
    outcome = shrink(tiny, SHOTS, rate=rate, unit=unit, keep={"end": share}, budget="contexts")
    check(SHOTS, outcome)
    assert not isinstance(outcome, Refusal)


@pytest.mark.parametrize("unit", ["phrase", "sentence"])
def test_white_space_is_no_end(tiny: str, unit: str) -> None:
    """It would be all that stays, and the words beside it too much."""
    parts = PromptParts("", ("hills many and hills then lazy then runs many runs runs many many runs then.\n\n",), "")
    for rate in (0.12, 0.3, 0.6):
        plain, ended = (shrink(tiny, parts, rate=rate, unit=unit, keep={"end": end}) for end in (0.0, 1.0))
        assert compressed(ended).strip() and (unit == "phrase" or compressed(ended) == compressed(plain))


def test_without_contexts_there_is_no_end(tiny: str) -> None:
    parts = PromptParts("One two three four five six.", (), "And seven?")
    check(parts, shrink(tiny, parts, rate=0.8, tau_instruction=0.5, keep={"end": 0.5}))


def test_shares_are_shares() -> None:
    for wrong in (-0.1, 1.5, "half"):
        with pytest.raises(ValidationError):
            Keep.model_validate({"end": wrong})
