"""What ``keep`` protects comes out byte for byte, whatever the budget."""

from __future__ import annotations

import re
import time

import pytest
from compress_models import WORDS
from compress_shrink import check, compressed, result, shrink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.compression import protect
from pipeline.compression.marked import UnmarkableError
from pipeline.compression.protect import Protection
from pipeline.stages import Refusal, Result
from schemas.compress import Keep, RandomSpec
from schemas.document import PromptParts

PARTS = PromptParts("Do it.", (WORDS, "It cost -3.5% of 1,200.50 (or 7) in 2024-05-06; x2 = .5e-3!"), "How many?")


def found(text: str, **keep: object) -> list[str]:
    return [text[a:b] for a, b in Protection.of(Keep.model_validate(keep)).spans(text).tolist()]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("paid $3,000.50 for 12*3=36", ["3,000.50", "12", "3", "36"]),
        ("-5 and 3-5, .5, 7%, 1e-5.", ["-5", "3", "5", ".5", "7%", "1e-5"]),
        ("at 10:30, 2024-05-06, x2", ["10:30", "2024", "05", "06", "2"]),
        ("٣٤ und ４２", ["٣٤", "４２"]),
        ("none", []),
    ],
)
def test_numbers(text: str, numbers: list[str]) -> None:
    assert found(text, digits=True) == numbers


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("call get_user or getUser", ["get_user", "getUser"]),
        ("then client.fetch(url, 3) and os.path", ["client.fetch(url, 3)", "os.path"]),
        ("__init__ of HTTPServer, MAX_SIZE", ["__init__", "HTTPServer", "MAX_SIZE"]),
        ("Plain words. Another one, NASA", []),
        ("f(x) + g(y)", ["f(x)", "g(y)"]),
    ],
)
def test_identifiers(text: str, names: list[str]) -> None:
    assert found(text, identifiers=True) == names


def test_words_wherever_they_stand_even_overlapping() -> None:
    assert found("banana", words=["ana"]) == ["anana"]
    assert found("abcd", words=["abc", "bcd"]) == ["abcd"]


def test_patterns_may_match_nothing() -> None:
    assert found("aab", patterns=["a*", r"(?<=a)b"]) == ["aab"]


@pytest.mark.parametrize(
    "keep", [{"digits": True}, {"identifiers": True}, {"words": ["lazy", "is"]}, {"patterns": [r'"\w+"', r"\$\d"]}]
)
@pytest.mark.parametrize("unit", ["token", "word", "phrase", "sentence"])
def test_what_is_protected_stays_as_it_stands(tiny: str, keep: dict[str, object], unit: str) -> None:
    outcome = shrink(tiny, PARTS, rate=0.75, unit=unit, keep=keep)
    check(PARTS, outcome)
    spans = result(outcome).fields["kept"]
    at = len("Do it.\n\n")
    for text in PARTS.contexts:
        for begin, end in Protection.of(Keep.model_validate(keep)).spans(text).tolist():
            assert any(a <= at + begin and at + end <= b for a, b in zip(spans[::2], spans[1::2], strict=True))
        at += len(text) + 2


def test_numbers_that_stay_do_not_run_into_each_other(tiny: str) -> None:
    text = " ".join(f"word {number} and" for number in range(100, 160))
    out = compressed(shrink(tiny, PromptParts(contexts=(text,)), rate=0.7, keep={"digits": True}))
    assert re.findall(r"\d+", out) == [str(number) for number in range(100, 160)]


def test_protected_text_beyond_the_budget_names_the_least(tiny: str) -> None:
    keep = {"patterns": ["(?s).+"]}
    outcome = shrink(tiny, PARTS, target_tokens=5, keep=keep)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "budget_too_small"
    least = int(outcome.reason.rpartition("at least ")[2].split()[0])
    assert isinstance(shrink(tiny, PARTS, target_tokens=least - 1, keep=keep), Refusal)
    assert isinstance(shrink(tiny, PARTS, target_tokens=least, keep=keep), Result)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["12", "word", "a_b", "好", "3.5", "f(x)", ".", "\n"]), max_size=40), st.floats(0.3, 1))
def test_any_mixture(tiny: str, pieces: list[str], rate: float) -> None:
    parts = PromptParts(contexts=(" ".join(pieces),))
    outcome = shrink(tiny, parts, rate=rate, keep={"digits": True, "identifiers": True})
    check(parts, outcome)
    if isinstance(outcome, Result):
        assert re.findall(r"\d+(?:\.\d+)?|a_b|f\(x\)", compressed(outcome)) == [
            piece for piece in pieces if piece in ("12", "a_b", "3.5", "f(x)")
        ]


def test_a_bad_pattern_is_named_when_the_job_is_read() -> None:
    with pytest.raises(ValidationError, match=r"patterns\[1\] is no regular expression: missing \)"):
        RandomSpec.model_validate(
            {"kind": "compress", "method": "random", "rate": 0.5, "keep": {"patterns": ["a", "(b"]}}
        )


def test_a_pattern_that_takes_for_ever_costs_its_document_alone(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    monkeypatch.setattr(protect, "SECONDS", 0.2)
    keep = {"patterns": [r"(a|aa)+$"]}
    with pytest.raises(UnmarkableError, match=r"keep.patterns\[0\] took more than"):
        Protection.of(Keep.model_validate(keep)).spans("a" * 90 + " b")
    outcome = shrink(tiny, PromptParts(contexts=("a" * 90 + " b",)), rate=0.5, keep=keep)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "pattern_too_slow"


@pytest.mark.parametrize("text", ["a", "1", "_", "a.", "a(", "aA", "1,", "-", "A"])
def test_protection_takes_linear_time(text: str) -> None:
    begun = time.process_time()
    found(text * (200_000 // len(text)), digits=True, identifiers=True)
    assert time.process_time() - begun < 3
