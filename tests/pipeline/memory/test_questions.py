"""What a step of fine-tuning learns from: which questions, cut how, in how many passes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from finetuning_jobs import ROWS, SETTINGS, row

from pipeline.compression.tokens import Tokenising
from pipeline.memory.answering import others
from pipeline.memory.encode_stage import Cut
from pipeline.memory.examples import Example, examples
from pipeline.memory.outlines import outlines_of
from pipeline.memory.questions import Question, flat, questions
from pipeline.memory.spans import cut
from pipeline.models import LoadedModel, ModelPool
from schemas.memory import FinetuneSpec, Lesson


def spec_of(**changes: Any) -> FinetuneSpec:
    return FinetuneSpec.model_validate({**SETTINGS, **changes})


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return ModelPool("cpu").own_copy(str(tiny_model))


@pytest.fixture(scope="module")
def found(base: LoadedModel) -> list[Example]:
    return [one for one in examples(ROWS, spec_of(), base, lambda: None) if isinstance(one, Example)]


def test_spans_are_as_few_as_may_be_and_of_like_length() -> None:
    assert cut(5, 128) == [5] and cut(128, 128) == [128] and cut(129, 128) == [64, 65]
    assert cut(1000, 128) == [125] * 8 and cut(1, 16) == [1]
    assert cut(129, 128, more=1) == [43, 43, 43] and cut(2, 128, more=5) == [1, 1]


def test_each_comes_once_an_epoch_in_another_order(found: list[Example]) -> None:
    spec = spec_of(rows_per_step=7)
    steps = [[one.example.document.seq for one in questions(found, spec, step)] for step in range(8)]
    epochs = flat(steps[:4]), flat(steps[4:])
    assert all(Counter(one) == Counter(row.seq for row in ROWS) for one in epochs) and epochs[0] != epochs[1]
    assert [one.example.document.seq for one in questions(found, spec, 3)] == steps[3]


def test_contexts_are_cut_by_the_lesson_and_some_into_more_spans(found: list[Example]) -> None:
    few, many = (questions(found, spec_of(multi_span=share, rows_per_step=28), 0) for share in (0.0, 1.0))
    for one, more in zip(few, many, strict=True):
        assert max(map(len, one.spans[0])) <= 12 and len(more.spans[0]) == len(one.spans[0]) + 1
        assert [len(ids) for ids in one.spans[0]] == cut(one.example.tokens, 12)
        assert all(slots == -(-len(ids) // 2) for ids, slots in zip(one.spans[0], one.slots[0], strict=True))
    later = questions(found, spec_of(multi_span=0.0, rows_per_step=28), 23)
    assert max(len(ids) for one in later for ids in one.spans[0]) == 16
    assert sum(one.repeated for one in few) == 7 == sum(one.repeated for one in many)


def test_a_context_is_cut_as_encoding_cuts_it(base: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, and a long text in the same pieces."""
    monkeypatch.setattr("pipeline.compression.tokens.PIECE", 50)
    one = row(0, ("halfadozendollarseach" * 5, " ", "Short."), "Who?", "x")
    (found,) = examples([one], spec_of(), base, lambda: None)
    (outline,) = outlines_of([one], Tokenising(base.tokenizer), Cut(16, 2.0), 0)
    assert isinstance(found, Example)
    asked = Question.of(found, Lesson(tokens=16, ratio=2.0, share=1.0))
    assert [ids.tolist() for ids in flat(asked.spans)] == [span.ids.tolist() for span in outline.spans]
    assert flat(asked.slots) == [span.slots for span in outline.spans]


def test_other_contexts_are_other_ones_of_as_many(found: list[Example]) -> None:
    """Each context stands in two rows, one after the other."""
    pairs = others(found)
    assert sorted(pairs) == list(range(len(found)))
    assert all(found[one].context_hash != found[other].context_hash for one, other in pairs.items())
    assert others(found[:2]) == {}
