"""JSON stays JSON: the same keys, numbers and shape, and of every string only what was cut out of it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from compress_models import WORDS
from compress_shrink import check, compressed, result, shrink, subsequence
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.compression.json_text import KeyRates, json_marked
from pipeline.compression.protect import Protection
from pipeline.stages import Refusal, Result
from schemas.compress import Keep, RandomSpec
from schemas.document import PromptParts

DATA = {
    "title": "The title stays as it is, all of it",
    "items": [{"body": WORDS, "n": 12345678901234567890, "x": [None, True, 1.5e-3]}, {"body": WORDS[:80], "n": 2}],
    "note": "Line one\nline two \"quoted\" \\ and \u4f60\u597d\u4e16\u754c \U0001f600\U0001f600 \u0301 end",
}  # fmt: skip


def same(old: Any, new: Any) -> bool:
    """The same shape, keys and numbers, and strings that are subsequences."""
    if isinstance(old, dict):
        return isinstance(new, dict) and list(old) == list(new) and all(same(old[key], new[key]) for key in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(old) == len(new) and all(map(same, old, new))
    if isinstance(old, str):
        return isinstance(new, str) and subsequence(new, old)
    return bool(old == new) and type(old) is type(new)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("unit", ["word", "token", "sentence"])
def test_json_stays_json(tiny: str, indent: int | None, ascii: bool, unit: str) -> None:
    source = json.dumps(DATA, indent=indent, ensure_ascii=ascii)
    parts = PromptParts(contexts=(source,))
    outcome = shrink(tiny, parts, rate=0.7, structure="json", key_rates={"title": 1.0, "items.body": 0.3}, unit=unit)
    check(parts, outcome)
    made = json.loads(compressed(outcome))
    assert same(DATA, made)
    assert made["title"] == DATA["title"]
    assert made != DATA


def test_values_of_a_key_share_its_rate(tiny: str) -> None:
    data = [{"body": "small rivers run to the sea", "free": "small rivers run to the sea"} for _ in range(20)]
    outcome = shrink(
        tiny, PromptParts(contexts=(json.dumps(data),)), rate=1.0, structure="json", key_rates={"body": 0.3}
    )
    made = json.loads(compressed(outcome))
    assert [row["free"] for row in made] == [row["free"] for row in data]
    kept = sum(len(row["body"].split()) for row in made)
    assert kept == pytest.approx(0.3 * 6 * 20, abs=5)
    assert result(outcome).fields["copied"] is False


def test_a_rate_of_a_key_that_is_not_there_is_said(tiny: str, caplog: pytest.LogCaptureFixture) -> None:
    parts = PromptParts(contexts=(json.dumps({"body": WORDS[:200]}),))
    shrink(tiny, parts, rate=0.5, structure="json", key_rates={"body": 0.4, "bodi": 0.1})
    assert [one.message for one in caplog.records] == ["key_rates: bodi decides nothing in this shard, documents: 1"]
    caplog.clear()
    shrink(tiny, parts, rate=0.5, structure="json", key_rates={"body": 0.4})
    assert not caplog.records


def test_lines_of_json(tiny: str) -> None:
    rows = [{"text": WORDS[:200]}, {"text": WORDS[200:400]}]
    parts = PromptParts(contexts=("\n".join(map(json.dumps, rows)) + "\n",))
    made = compressed(shrink(tiny, parts, rate=0.5, structure="json"))
    assert same(rows, [json.loads(line) for line in made.splitlines()])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('{"a": 1,\n "b" 2}', "contexts[0], line 2, column 6: this is no JSON (Expecting ':' delimiter)"),
        ('{"a": "x"}\n{"a": }', "contexts[0], line 2, column 7: this is no JSON (Expecting value)"),
        ("plain words", "contexts[0], line 1, column 1: this is no JSON (Expecting value)"),
        (
            '{"Infinity": "NaN",\n "b": NaN}',
            "contexts[0], line 2, column 7: this is no JSON (NaN is none of its numbers)",
        ),
        ('[1e999, "\\"NaN", -Infinity, NaN]', "contexts[0], line 1, column 18: this is no JSON (-Infinity is none"),
        (
            '{"a": 1}\n{"a": Infinity}',
            "contexts[0], line 2, column 7: this is no JSON (Infinity is none of its numbers)",
        ),
        ("[" * 200_000, "contexts[0], line 1, column 1: this is no JSON (nested too deep)"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(tiny: str, source: str, message: str) -> None:
    outcome = shrink(tiny, PromptParts("Plain.", (source,), "Plain?"), rate=0.9, structure="json")
    assert isinstance(outcome, Refusal)
    assert outcome.code == "not_json"
    assert outcome.reason.startswith(message)


def test_instruction_and_question_need_be_no_json(tiny: str) -> None:
    parts = PromptParts("Be brief and kind.", (json.dumps(DATA),), "What is it about?")
    outcome = shrink(tiny, parts, rate=0.8, structure="json", tau_instruction=0.8, tau_question=0.8)
    check(parts, outcome)
    assert isinstance(outcome, Result)


@pytest.mark.parametrize(
    ("path", "rate"),
    [
        (("body",), 0.5), (("items", "body"), 0.3), (("a", "items", "body"), 0.3), (("body", "text"), 0.5),
        (("meta",), 0.9), (("meta", "body"), 0.5), (("a.b",), 0.7), (("x",), None), ((), None),
    ],
)  # fmt: skip
def test_rates_by_key_and_path(path: tuple[str, ...], rate: float | None) -> None:
    rates = KeyRates((("a.b", 0.7), ("body", 0.5), ("items.body", 0.3), ("meta", 0.9)))
    found = rates.find(path)
    assert (found and found[0]) == rate


def test_rates_are_found_through_lists_and_nested_objects() -> None:
    source = '{"items": [{"body": ["one", {"deep": "two"}]}], "body": "three", "n": [1, "four"]}'
    marked = json_marked(source, KeyRates((("items.body", 0.3),)), Protection.of(Keep()))
    own = [(source[one.begin : one.end], one.rate) for one in marked.rates if one.rate < 1]
    assert own == [("one", 0.3), ("two", 0.3)]
    free = [source[a:b] for a, b in zip(marked.protected[:-1, 1], marked.protected[1:, 0], strict=True)]
    assert free == ["one", "two", "three", "four"]


def test_what_keep_protects_is_found_in_what_a_string_says(tiny: str) -> None:
    data = {"text": "caf\u00e9 words \u4f60\u597d and 12 more words \U0001f600 here to be cut away in the end"}
    keep = {"words": ["caf\u00e9", "\u597d"], "digits": True}
    outcome = shrink(tiny, PromptParts(contexts=(json.dumps(data),)), rate=0.55, structure="json", keep=keep)
    text = json.loads(compressed(outcome))["text"]
    assert "caf\u00e9" in text
    assert "\u597d" in text
    assert "12" in text
    assert text != data["text"]


def test_half_a_surrogate_pair_never_meets_another(tiny: str) -> None:
    source = json.dumps({"a": "\ud83d word word word \ude00", "b": "word " * 30})
    outcome = shrink(tiny, PromptParts(contexts=(source,)), rate=0.7, structure="json")
    assert json.loads(compressed(outcome))["a"] == json.loads(source)["a"]


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example({"a": '\\"\n\u2028\x00'}, 0.9, True, None, "token")
@given(
    values, st.floats(0.3, 1), st.booleans(), st.sampled_from([None, 1]), st.sampled_from(["word", "token", "phrase"])
)
def test_any_json_stays_json(tiny: str, value: Any, rate: float, ascii: bool, indent: int | None, unit: str) -> None:
    source = json.dumps(value, ensure_ascii=ascii, indent=indent)
    parts = PromptParts(contexts=(source,))
    outcome = shrink(tiny, parts, rate=rate, structure="json", unit=unit)
    check(parts, outcome)
    if isinstance(outcome, Result):
        assert same(value, json.loads(compressed(outcome)))


def test_a_list_of_what_was_removed_would_be_no_json() -> None:
    with pytest.raises(ValidationError, match="removed_phrases"):
        RandomSpec.model_validate(
            {"kind": "compress", "method": "random", "rate": 0.5, "structure": "json", "removed_phrases": 3}
        )


def test_a_large_document_takes_linear_time() -> None:
    source = json.dumps([{"a": {"b": "The quick\nbrown \u00e9 fox"}, "c": [1, "x"]} for _ in range(15_000)])
    begun = time.process_time()
    marked = json_marked(source, KeyRates((("a.b", 0.5),)), Protection.of(Keep()))
    assert len(marked.atoms) == 30_000
    assert time.process_time() - begun < 10
