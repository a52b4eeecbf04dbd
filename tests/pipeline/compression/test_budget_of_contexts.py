"""``budget = "contexts"``: what stands verbatim beside the contexts costs nothing, however long it is."""

from __future__ import annotations

import pytest
from compress_models import WORDS, Compressing

from pipeline.stages import Outcome, Refusal, Result
from schemas.document import PromptParts

CONTEXTS = tuple(line for line in WORDS.splitlines() if line)[:6]
QUESTION = "How many pens did Sam sell, and for how much? " * 12


def result(outcomes: list[Outcome]) -> Result:
    (outcome,) = outcomes
    assert isinstance(outcome, Result), outcome
    return outcome


@pytest.mark.parametrize("budget", [{"rate": 0.05}, {"target_tokens": 12}])
def test_a_long_question_leaves_the_contexts_their_budget(compressing: Compressing, budget: dict[str, float]) -> None:
    short, long = (PromptParts("Solve it.", CONTEXTS, question) for question in ("How many?", QUESTION))
    refused = compressing(long, **budget)[0]
    assert isinstance(refused, Refusal) and refused.code == "budget_too_small"
    spent = []
    for parts in (short, long):
        found = result(compressing(parts, **budget, budget="contexts"))
        text = found.fields["compressed"]
        assert text.startswith(parts.instruction) and text.endswith(parts.question)
        assert found.tokens_asked is not None and found.tokens_out <= found.tokens_asked
        spent.append(found.tokens_asked - result(compressing(PromptParts(*_bare(parts)), rate=1.0)).tokens_in)
    assert spent[0] == spent[1] > 0


def _bare(parts: PromptParts) -> tuple[str, tuple[str, ...], str]:
    return parts.instruction, (), parts.question


def test_it_is_the_same_where_there_is_nothing_beside_or_nothing_else(compressing: Compressing) -> None:
    contexts = PromptParts(contexts=CONTEXTS)
    assert (
        result(compressing(contexts, rate=0.4, budget="contexts")).fields["compressed"]
        == result(compressing(contexts, rate=0.4)).fields["compressed"]
    )
    alone = result(compressing(PromptParts(question=QUESTION), rate=0.05, budget="contexts"))
    assert alone.fields["copied"] and alone.fields["compressed"] == QUESTION
