"""What every method of compression promises, whatever the text: one set of properties over the whole registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from compress_models import WORDS, Compressing, save_tokenizer, text_of
from family_prompts import BY_MODEL, MODEL_FREE, tokenising
from hypothesis import given
from numpy.typing import NDArray
from prompt_draws import mostly_cut, prompts, quick, rate_of, shares

from pipeline.compression.registry import METHODS
from pipeline.stages import Outcome, Refusal, Result
from schemas.compress import CompressSpec
from schemas.document import SEPARATOR, PromptParts
from schemas.stage import SPECS

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in (*MODEL_FREE, *BY_MODEL)},
    "truncation-head": {"cut": "head"},
    "truncation-middle": {"cut": "middle"},
    "random-sentences": {"unit": "sentence"},
    "selective-context-words": {"unit": "word", "importance": "surprisal-tfidf"},
    "llmlingua-once": {"iterative": False, "rank_contexts_by": "bm25"},
    "llmlingua-skim": {"skim": 0.3, "rank_contexts_by": "random", "importance": "surprisal-tfidf"},
    "llmlingua-frame": {"frame": True, "hierarchy": True},
    "longllmlingua-all": {"budget_controller": False, "iterative": False, "reorder": False},
    "longllmlingua-plain": {"contrastive": False, "delta_tau": 0.0, "skim": 0.2, "frame": True},
    "longllmlingua-best-last": {"contrastive": False, "rank_contexts_by": "perplexity", "reorder": "best-last"},
}
LINES = [line for line in WORDS.splitlines() if line][:8]
AWKWARD = {
    "chinese": "敏捷的棕色狐狸跳过了懒狗。然后继续前进。" * 8,
    "arabic": "المكتبة على يسار المحطة. والبنك على يمينها. " * 6,
    "code": "def area(w, h):\n    # the product\n    return w * h\n" * 8,
    "json": '{"name":"Ada","tags":["math","code"],"born":1815,"notes":null}' * 8,
    "japanese": "東京都は日本の首都です。カタカナとひらがな、「漢字」もあります。" * 12,
    "emoji": "👨‍👩‍👧‍👦🇩🇪👍🏽 ok 😀😀 " * 12,
    "controls": "\x00\x01\x1b[31mred\x7f\u202e\u200f \r\n\x85\u2028" * 12,
    "one letter": "a" * 3000,
    "punctuation": "... !!! --- ??? " * 20,
}


def settings_of(variant: str) -> dict[str, Any]:
    method = next(name for name in sorted(METHODS, key=len, reverse=True) if variant.startswith(name))
    return {"method": method, **VARIANTS[variant]}


def moves(variant: str) -> bool:
    """Whether contexts may stand in another order."""
    wanted = settings_of(variant)
    return wanted["method"] == "longllmlingua" and bool(wanted.get("reorder", True))


def test_the_variants_cover_the_registry() -> None:
    covered = {settings_of(variant)["method"] for variant in VARIANTS}
    assert covered == set(METHODS)


def check(parts: PromptParts, outcome: Outcome, reordered: bool) -> None:
    if isinstance(outcome, Refusal):
        assert outcome.code in ("empty", "budget_too_small")
        return
    text, original, kept = text_of(outcome), parts.render(), outcome.fields["kept"]
    assert outcome.tokens_asked is not None and outcome.tokens_out <= outcome.tokens_asked
    spans = list(zip(kept[::2], kept[1::2], strict=True))
    assert "".join(original[begin:end] for begin, end in spans) == text
    assert text.startswith(parts.instruction) and text.endswith(parts.question)
    assert "\ufffd" not in text or "\ufffd" in original
    text.encode()
    stretches = stretches_of(parts, spans)
    order = [part for part, _ in stretches]
    assert len(set(order)) == len(order)  # each part stands in one piece
    assert reordered or order == sorted(order)
    assert all((np.diff(places) > 0).all() for _, places in stretches)  # and in it nothing moves, nothing comes twice
    assert SEPARATOR.join("".join(original[place] for place in places) for _, places in stretches) == text


def stretches_of(parts: PromptParts, spans: list[tuple[int, int]]) -> list[tuple[int, NDArray[np.int64]]]:
    """Runs of kept characters of one part: its number, their places. Blank lines between parts are left out."""
    lengths = np.array([len(one) for one in (parts.instruction, *parts.contexts, parts.question) if one])
    begins = np.cumsum(lengths + len(SEPARATOR)) - lengths - len(SEPARATOR)
    places = np.concatenate([np.arange(begin, end) for begin, end in spans])
    owner = np.searchsorted(begins, places, side="right") - 1
    inside = places < (begins + lengths)[owner]
    places, owner = places[inside], owner[inside]
    cuts = np.flatnonzero(np.diff(owner)) + 1
    return [(int(part[0]), some) for part, some in zip(np.split(owner, cuts), np.split(places, cuts), strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_promises_hold_for_any_text_and_rate(compressing: Compressing, variant: str) -> None:
    def cut(parts: PromptParts, share: float) -> Outcome:
        (outcome,) = compressing(parts, rate=rate_of(tokenising(), parts, share), **settings_of(variant))
        check(parts, outcome, moves(variant))
        return outcome

    mostly_cut(cut, 12, prompts, shares)


@pytest.mark.parametrize("variant", VARIANTS)
@quick(8)
@given(prompts)
def test_rate_1_changes_no_text(compressing: Compressing, variant: str, parts: PromptParts) -> None:
    (outcome,) = compressing(parts, rate=1.0, **settings_of(variant))
    if isinstance(outcome, Result):
        assert (text_of(outcome), outcome.fields["copied"]) == (parts.render(), True)
    else:
        assert outcome.code == "empty" and not parts.render().strip()


@pytest.mark.parametrize("variant", VARIANTS)
def test_awkward_text_survives(compressing: Compressing, variant: str) -> None:
    sources = [PromptParts("Do it.", (text, LINES[0], text[:50]), "Why then?") for text in AWKWARD.values()]
    outcomes = compressing(*sources, rate=0.4, **settings_of(variant))
    for source, outcome in zip(sources, outcomes, strict=True):
        check(source, outcome, moves(variant))
    assert sum(isinstance(outcome, Result) for outcome in outcomes) >= len(sources) - 1


@pytest.mark.parametrize("method", METHODS)
def test_a_megabyte_without_a_word(compressing: Compressing, method: str) -> None:
    parts = PromptParts("Do it.", ("a" * 10**6,), "Why?")
    (outcome,) = compressing(parts, rate=0.05, method=method)
    check(parts, outcome, moves(method))
    assert isinstance(outcome, Result)
    assert outcome.tokens_out >= 0.97 * (outcome.tokens_asked or 0)


def untimed(outcome: Outcome) -> Any:
    if isinstance(outcome, Refusal):
        return outcome
    return {name: value for name, value in outcome.fields.items() if name != "compress_seconds"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_what_single_documents_give(compressing: Compressing, variant: str) -> None:
    sources = [
        PromptParts("Do." * (n % 3), (*LINES[: 1 + n % 7], WORDS[: 60 * n]), "Why so?" * (n % 2)) for n in range(9)
    ]
    together = compressing(*sources, target_tokens=70, batch_tokens=500, **settings_of(variant))
    alone = [compressing(one, target_tokens=70, **settings_of(variant))[0] for one in sources]
    assert [untimed(one) for one in together] == [untimed(one) for one in alone]
    assert len({text_of(one) for one in together if isinstance(one, Result)}) > 5


@pytest.mark.parametrize("method", ["selective-context", "longllmlingua", "bm25", "truncation"])
def test_budgets_hold_in_a_tokenizer_of_another_kind(compressing: Compressing, tmp_path: Path, method: str) -> None:
    target = save_tokenizer(tmp_path, "wordpiece")
    for text in AWKWARD.values():
        parts = PromptParts("Do it.", (text, LINES[0]), "Why then?")
        (outcome,) = compressing(parts, target=target, rate=0.5, method=method)
        check(parts, outcome, method == "longllmlingua")


def test_only_longllmlingua_moves_contexts(compressing: Compressing) -> None:
    parts = PromptParts(contexts=tuple(LINES), question="How many pens did Sam buy?")
    for method in (*MODEL_FREE, *BY_MODEL):
        (outcome,) = compressing(parts, rate=0.9, method=method)
        assert isinstance(outcome, Result)
        moved = outcome.fields["kept"] != sorted(outcome.fields["kept"])
        assert moved == (method == "longllmlingua"), method


def test_registry_specs_and_documentation_name_the_same_methods() -> None:
    specs = {tag: spec for tag, spec in SPECS.items() if issubclass(spec, CompressSpec) and ":" not in tag}
    assert set(specs) == set(METHODS)
    for tag, spec in specs.items():
        assert get_args(spec.model_fields["method"].annotation) == (tag,)
    page = Path("docs/methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `([\w-]+)`", page, re.MULTILINE)) == set(METHODS)
    shared = set(CompressSpec.model_fields)
    for tag, spec in specs.items():
        section = page.partition(f"## `{tag}`")[2].partition("\n## ")[0]
        own = {name for name in spec.model_fields if name not in shared} - {"model", "dtype"}
        documented = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) - {"unit", "model", "dtype"}
        assert own == documented, tag


def test_settings_of_all_methods_and_every_module_are_documented() -> None:
    page = Path("docs/compression.md").read_text(encoding="utf-8")
    settings_table = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    documented = {
        name
        for cell in re.findall(r"^\| (`.*?) \|", settings_table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert set(CompressSpec.model_fields) - {"kind", "method", "fidelity"} <= documented
    specs = [spec for spec in SPECS.values() if issubclass(spec, CompressSpec)]
    assert documented <= {name for spec in specs for name in spec.model_fields}
    for folder, head in (("compression", "| file |"), ("passes", "| file of `pipeline/passes` |")):
        modules = {path.name for path in Path("pipeline", folder).glob("*.py")} - {"__init__.py"}
        table = page.partition(f"\n{head} what it holds |\n")[2].partition("\n\n")[0]
        assert modules == set(re.findall(r"`(\w+\.py)`", table))
