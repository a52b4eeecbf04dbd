"""Where the library raises an exception: a text within the budget, and a word of what happened."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reference_models import compressed, engine_of

from benchmarks.parity.random_model import TEXTS, save
from pipeline.compression.reference.codec import Codec
from pipeline.compression.reference.reference import ReferenceResult
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Refusal
from schemas.document import PromptParts
from schemas.reference import ReferenceOptions

LONG = " ".join(TEXTS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return ModelPool("cpu").causal_lm(str(save(tmp_path_factory.mktemp("crashes"), 1024)))


def tokens(loaded: LoadedModel, text: str) -> int:
    (ids,) = Codec(loaded.tokenizer).encode([text])
    return len(ids)


def test_a_budget_that_rounds_to_nothing(loaded: LoadedModel) -> None:
    """The first segment's budget is no token: all losses are gone when the second wants a threshold."""
    text = f"<llmlingua, rate=0.01>{TEXTS[1]}</llmlingua><llmlingua, rate=0.02>\n</llmlingua>"
    parts, size = PromptParts("", (text,), ""), tokens(loaded, TEXTS[1] + "\n")
    one = compressed(loaded, parts, structured=True, target_token=1, iterative_size=size)
    assert one.crashed == "no losses are left to take a threshold from"
    assert tokens(loaded, one.text) == 1


def test_a_question_that_is_not_decoded_to_itself(loaded: LoadedModel) -> None:
    """Decoding takes the space before punctuation away."""
    parts = PromptParts("Read this.", (LONG,), "Who left , and why ?")
    one = compressed(loaded, parts, rate=0.5, condition_in_question="after_condition")
    assert "question does not survive" in (one.crashed or "")
    assert one.text.startswith("Read this.\n\nQuestion: Sam bought 12 boxes")
    assert one.text.endswith("\n\nWho left , and why ?")
    whole = tokens(loaded, parts.render())
    assert 0.9 * whole / 2 < tokens(loaded, one.text) <= whole / 2
    exact = compressed(
        loaded, parts, rate=0.5, condition_in_question="after_condition", clean_up_tokenization_spaces=False
    )
    assert exact.crashed is None


def test_a_question_alone_that_exceeds_the_budget_is_not_cut(loaded: LoadedModel) -> None:
    parts = PromptParts("", (LONG,), LONG + " ,")
    one = compressed(loaded, parts, target_token=5, condition_in_question="after_condition")
    assert one.crashed
    assert one.text == parts.question


@pytest.mark.parametrize(
    ("contexts", "question", "options", "why"),
    [
        (("a b", ""), "", {"rate": 0.5}, "no tokens"),
        ((LONG,), "", {"rank_method": "longllmlingua"}, "needs a question"),
        (("",), "Why?", {}, "nothing is left"),
        ((LONG,), "", {"structured": True, "target_token": 5000}, "exceeds what there is"),
        (("<llmlingua, rate=1.5>abc</llmlingua>",), "", {"structured": True}, "exceeds 1"),
        (("<llmlingua, rate=0.1.5>abc</llmlingua>",), "", {"structured": True}, "no number"),
        (("plain < text > here",), "", {"structured": True}, "nothing is left"),
        ((f"End with <|endoftext|>. {LONG}",), "Why?", {"rate": 0.5}, "special token"),
        ((LONG,), "What is <|fim_middle|>?", {"target_token": 40}, "special token"),
        ((LONG * 2,), "", {"iterative_size": 200, "rate": 1.0, "condition_compare": True}, None),
    ],
)
def test_every_crash_gives_a_text_within_the_budget(
    loaded: LoadedModel, contexts: tuple[str, ...], question: str, options: dict[str, Any], why: str | None
) -> None:
    parts = PromptParts("", contexts, question)
    one = compressed(loaded, parts, **options)
    assert (one.crashed is None) if why is None else (why in (one.crashed or ""))
    budget = options.get("target_token", tokens(loaded, parts.render()) * options.get("rate", 0.5))
    if why is not None:
        assert tokens(loaded, one.text) <= max(budget, tokens(loaded, question))
        assert "llmlingua" not in one.text


def key(kind: str, *, compress: bool = True, remove: bool = False) -> dict[str, Any]:
    return {"rate": 0.5, "compress": compress, "value_type": kind, "pair_remove": remove}


@pytest.mark.parametrize(
    ("text", "config", "kept"),
    [
        ('{"a": "short", "b": [1, 2]}', {"a": key("str", compress=False), "b": key("tuple")}, ["a"]),
        (json.dumps({"a": LONG, "b": "x"}), {"a": key("number", remove=True), "b": key("str")}, ["b"]),
        ('{"a": "short"}', {"z": key("str")}, []),
        ('{"a": maybe', {"a": key("str")}, []),
        ("[1, 2]", {"a": key("str")}, []),
        ("{}", {}, []),
    ],
)
def test_json_stays_json(loaded: LoadedModel, text: str, config: dict[str, Any], kept: list[str]) -> None:
    one = compressed(loaded, PromptParts("", (text,), ""), json_config=config)
    assert one.crashed
    value = json.loads(one.text)
    assert list(value) == kept
    assert all(value[name] == json.loads(text)[name] for name in kept)


def test_what_there_is_nothing_to_compress_in_is_refused(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, ReferenceOptions())
    sources = [PromptParts("", (" \n",), ""), PromptParts("", ("a\ud800b",), ""), PromptParts("", (LONG,), "")]
    empty, broken, good = engine.compress(sources)
    assert isinstance(empty, Refusal) and empty.code == "empty"
    assert isinstance(broken, Refusal) and broken.code == "invalid_unicode"
    assert good == engine.compress(sources[2:])[0]


def test_equal_documents_are_scored_once(loaded: LoadedModel) -> None:
    scored: list[int] = []
    parts = PromptParts("", tuple(TEXTS), "Why?")
    engine = engine_of(loaded, ReferenceOptions(target_token=60, iterative_size=50))
    (one,) = engine.compress([parts], scored.append)
    assert isinstance(one, ReferenceResult)
    first = sum(scored)
    scored.clear()
    assert engine.compress([PromptParts("", tuple(TEXTS), f"{word}?") for word in "abc"], scored.append) == [
        ReferenceResult(one.text.replace("Why?", f"{word}?"), one.contexts) for word in "abc"
    ]
    assert 0 < sum(scored) < first  # the ranking is known, and the three texts are one
