"""What the stage promises about budgets, protected text, order and bad input, on small random models."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from compress_models import TOKENIZERS, WORDS, Compressing, document, stage_of, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.compression import contexts, reading
from pipeline.compression.marked import Marked
from pipeline.compression.registry import build_method
from pipeline.compression.tokens import Tokenising
from pipeline.compression.units import MAX_TOKENS, cut
from pipeline.models import ModelPool, load_tokenizer
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.compress import LLMLinguaSpec
from schemas.document import Document, PromptParts
from schemas.records import STAGE_FIELDS

SENTENCES = [line for line in WORDS.splitlines() if line][:9]
PROMPT = PromptParts("Solve it:\tstep by step. ", tuple(SENTENCES), "\nHow many pens?  ")
quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

SNIPPETS = ["word", "12*3=36", "你好", "👨‍👩‍👧‍👦", "\n\n", "  ", "x.y(z)", "é", "<|x|>"]
texts = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from(SNIPPETS), max_size=40).map(" ".join),
)
prompts = st.builds(PromptParts, texts, st.lists(texts, max_size=5).map(tuple), texts)


def is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(char in rest for char in short)


def untimed(outcome: Outcome) -> Any:
    if isinstance(outcome, Refusal):
        return outcome
    return {name: value for name, value in outcome.fields.items() if name != "compress_seconds"}


def check_promises(parts: PromptParts, outcome: Outcome, protect: bool = True) -> None:
    if isinstance(outcome, Refusal):
        assert outcome.code in ("empty", "budget_too_small")
        return
    text, original = text_of(outcome), parts.render()
    assert outcome.tokens_asked is not None
    assert outcome.tokens_out == outcome.fields["tokens_compressed"] <= outcome.tokens_asked
    assert "\ufffd" not in text or "\ufffd" in original
    assert is_subsequence(text, original)
    kept = outcome.fields["kept"]
    assert "".join(original[begin:end] for begin, end in zip(kept[::2], kept[1::2], strict=True)) == text
    if outcome.fields["copied"]:
        assert text == original
    elif protect:
        assert text.startswith(parts.instruction)
        assert text.endswith(parts.question)


@quick
@given(prompts, st.floats(0.02, 1), st.booleans())
def test_promises_hold_for_any_text_and_rate(
    compressing: Compressing, tiny: str, parts: PromptParts, rate: float, protect: bool
) -> None:
    free = {} if protect else {"tau_instruction": 0.85, "tau_question": 0.9}
    (outcome,) = compressing(parts, rate=rate, **free)
    check_promises(parts, outcome, protect)
    if isinstance(outcome, Result) and not outcome.fields["copied"]:  # as much is used as whole units allow
        largest = max(2 * MAX_TOKENS, largest_unit(parts, tiny))
        assert outcome.tokens_out >= min(0.97 * (outcome.tokens_asked or 0), (outcome.tokens_asked or 0) - largest)


def largest_unit(parts: PromptParts, model: str) -> int:
    """Tokens of it, by the scorer's tokenizer, which counts here, too."""
    texts = [text for text in (parts.instruction, *parts.contexts, parts.question) if text]
    tokens = Tokenising(load_tokenizer(model)).tokenise(texts)
    cuts = cut([Marked(text) for text in texts], [one.spans for one in tokens])
    sizes = [np.diff([*units.first, len(one.ids)]).max(initial=0) for units, one in zip(cuts, tokens, strict=True)]
    return int(max(sizes))


@quick
@given(prompts, st.integers(1, 200), st.sampled_from(["token", "word", "phrase", "sentence"]), st.booleans())
def test_promises_hold_in_another_tokenizer_for_every_unit(
    compressing: Compressing, bytewise: str, parts: PromptParts, target_tokens: int, unit: str, hierarchy: bool
) -> None:
    (outcome,) = compressing(parts, target=bytewise, target_tokens=target_tokens, unit=unit, hierarchy=hierarchy)
    check_promises(parts, outcome)


@pytest.mark.parametrize("kind", TOKENIZERS)
@quick
@given(prompts, st.floats(0.02, 1))
def test_promises_hold_whatever_tokenizer_counts(
    compressing: Compressing, counters: dict[str, str], kind: str, parts: PromptParts, rate: float
) -> None:
    """Some lose white space and case; their models' weights are nowhere."""
    (outcome,) = compressing(parts, target=counters[kind], rate=rate)
    check_promises(parts, outcome)
    if isinstance(outcome, Result):
        inner = load_tokenizer(counters[kind]).backend_tokenizer
        assert outcome.tokens_out == len(inner.encode(text_of(outcome), add_special_tokens=False))


@quick
@given(prompts)
def test_nothing_changes_at_rate_1(compressing: Compressing, parts: PromptParts) -> None:
    (outcome,) = compressing(parts, rate=1.0)
    if parts.render().strip():
        assert text_of(outcome) == parts.render()
        assert isinstance(outcome, Result)
        assert outcome.fields["copied"]
        assert outcome.tokens_in == outcome.tokens_out == outcome.tokens_asked
    else:
        assert isinstance(outcome, Refusal)
        assert outcome.code == "empty"


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("other", [False, True])
def test_the_budget_is_used(compressing: Compressing, bytewise: str, tiny: str, rate: float, other: bool) -> None:
    source = PromptParts(contexts=tuple(SENTENCES) * 3, question="How many?")
    (outcome,) = compressing(source, rate=rate, target=bytewise if other else tiny)
    check_promises(source, outcome)
    assert isinstance(outcome, Result)
    assert outcome.tokens_asked is not None
    assert outcome.tokens_out >= 0.97 * outcome.tokens_asked


def test_every_column_is_filled(compressing: Compressing) -> None:
    (outcome,) = compressing(PROMPT, rate=0.5)
    assert isinstance(outcome, Result)
    assert list(outcome.fields) == STAGE_FIELDS["compress"].names
    assert outcome.fields["compress_method"] == "llmlingua"
    assert outcome.tokens_in == outcome.fields["tokens_original"] > outcome.tokens_out > 0
    assert outcome.seconds == outcome.fields["compress_seconds"] > 0


def test_too_small_a_budget_names_the_least(compressing: Compressing) -> None:
    (outcome,) = compressing(PROMPT, target_tokens=3)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "budget_too_small"
    least = int(outcome.reason.rpartition("at least ")[2].split()[0])
    (refused,) = compressing(PROMPT, target_tokens=least - 1)
    assert isinstance(refused, Refusal)
    (outcome,) = compressing(PROMPT, target_tokens=least)
    assert text_of(outcome) == PromptParts(PROMPT.instruction, (), PROMPT.question).render()


def test_a_budget_under_one_unit_names_the_least(compressing: Compressing) -> None:
    source = PromptParts(contexts=("internationalization notwithstanding " * 8,))
    (outcome,) = compressing(source, target_tokens=1)
    assert isinstance(outcome, Refusal)
    least = int(outcome.reason.rpartition("at least ")[2].split()[0])
    (outcome,) = compressing(source, target_tokens=least)
    check_promises(source, outcome)
    assert isinstance(outcome, Result)


@pytest.mark.parametrize("question", ["\t\t", "\n"])
def test_white_space_that_must_stay_stays(compressing: Compressing, counters: dict[str, str], question: str) -> None:
    parts = PromptParts(contexts=tuple(SENTENCES), question=question)
    for target_tokens in (1, 2, 3):
        (outcome,) = compressing(parts, target=counters["wordpiece"], target_tokens=target_tokens)
        check_promises(parts, outcome)
    assert isinstance(outcome, Result)


def test_instruction_and_question_shrink_when_asked(compressing: Compressing) -> None:
    source = PromptParts(WORDS[:300], (WORDS,), WORDS[300:700])
    (outcome,) = compressing(source, rate=0.5, tau_instruction=0.85, tau_question=0.9)
    check_promises(source, outcome, protect=False)
    first, last = text_of(outcome)[:300], text_of(outcome)[-400:]
    assert first != source.instruction
    assert last != source.question
    (outcome,) = compressing(source, rate=0.1, tau_instruction=0.85, tau_question=0.9)
    check_promises(source, outcome, protect=False)


@pytest.mark.parametrize("batch_tokens", [16, 700, 16_384])
def test_a_batch_gives_what_single_documents_give(compressing: Compressing, batch_tokens: int) -> None:
    sources = [
        PromptParts("Do." * (n % 3), (*SENTENCES[: 1 + n % 8], WORDS[: 90 * n]), "Why?" * (n % 2)) for n in range(13)
    ]
    together = compressing(*sources, target_tokens=90, iterative_size=40, batch_tokens=batch_tokens)
    alone = [compressing(one, target_tokens=90, iterative_size=40)[0] for one in sources]
    assert [untimed(one) for one in together] == [untimed(one) for one in alone]
    assert len({text_of(one) for one in together if isinstance(one, Result)}) > 8


def test_a_batch_with_tags_lists_and_levels_gives_what_single_documents_give(compressing: Compressing) -> None:
    tagged = "<llmlingua, rate=0.3>{}</llmlingua> and <llmlingua, compress=False>a < b;</llmlingua> {}"
    sources = [PromptParts("Do.", (tagged.format(WORDS[: 150 * n], WORDS[-300:]),), "Why?") for n in range(1, 6)]
    options: dict[str, Any] = {
        "rate": 0.5, "structure": "tags", "unit": "phrase", "keep": {"digits": True}, "hierarchy": True,
        "removed_phrases": 2, "tau_question": 0.9,
    }  # fmt: skip
    together = compressing(*sources, **options)
    alone = [compressing(one, **options)[0] for one in sources]
    assert [untimed(one) for one in together] == [untimed(one) for one in alone]
    assert all("a < b;" in text_of(one) for one in together)


AWKWARD = {
    "code": "def area(w, h):\n    # the product\n    return w * h\n" * 20,
    "json": '{"name":"Ada","tags":["math","code"],"born":1815,"notes":null}' * 20,
    "chinese": "敏捷的棕色狐狸跳过了懒狗，然后继续前进。" * 20,
    "japanese": "東京都は日本の首都です。カタカナとひらがな、「漢字」もあります。" * 12,
    "emoji": "👨‍👩‍👧‍👦🇩🇪👍🏽 ok 😀😀 " * 30,
    "controls": "\x00\x01\x1b[31mred\x7f\u202e\u200f \r\n\x85\u2028" * 30,
    "special tokens": "<s> and <|im_end|> are text here " * 20,
    "combining": "e\u0301\u0323" * 200,
    "replacement": "\ufffd kept \ufffd " * 40,
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_text_survives(compressing: Compressing, name: str) -> None:
    parts = PromptParts(contexts=(AWKWARD[name],))
    (outcome,) = compressing(parts, rate=0.3)
    assert isinstance(outcome, Result), outcome
    check_promises(parts, outcome)
    assert outcome.tokens_out >= 0.9 * (outcome.tokens_asked or 0)


@pytest.mark.parametrize("text", ["", " \n\t\u3000"])
def test_nothing_to_compress_is_refused(compressing: Compressing, text: str) -> None:
    (outcome,) = compressing(PromptParts(contexts=(text,)), rate=0.5)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "empty"


def test_half_a_surrogate_pair_is_refused_alone(pool: ModelPool, tiny: str) -> None:
    broken = Document(0, "0", PromptParts(contexts=("ok \ud83d no",)), "0" * 32)
    bad, good = stage_of(tiny, rate=0.5).run([broken, document(PROMPT)], Run(pool))
    assert isinstance(bad, Refusal)
    assert bad.code == "invalid_unicode"
    assert isinstance(good, Result)


def test_cost_is_linear_beyond_the_window(compressing: Compressing) -> None:
    compressing(PROMPT, rate=0.5)
    seconds = []
    for times in (20, 160):
        begun = time.process_time()
        (outcome,) = compressing(PromptParts(contexts=(WORDS * times,)), rate=0.2, iterative_size=64)
        seconds.append(time.process_time() - begun)
        assert isinstance(outcome, Result)
    assert seconds[1] < 8 * 2.5 * seconds[0]  # quadratic would be 64 times as long


def six_documents(tiny: str, run: Run) -> list[Outcome]:
    stage = stage_of(tiny, rate=0.5, batch_tokens=300, iterative_size=40)
    return stage.run([document(PROMPT, seq) for seq in range(6)], run)


def test_progress_counts_every_document_and_token(pool: ModelPool, tiny: str) -> None:
    seen: list[tuple[int, int]] = []
    outcomes = six_documents(tiny, Run(pool, progress=lambda documents, tokens: seen.append((documents, tokens))))
    assert len(seen) > 2
    assert sum(documents for documents, _ in seen) == 6
    assert sum(tokens for _, tokens in seen) == sum(one.tokens_in for one in outcomes if isinstance(one, Result))


def test_a_long_document_gives_signs_of_life(pool: ModelPool, tiny: str) -> None:
    """It is progress that keeps a shard from being taken for stuck; one document may take hours."""
    seen: list[tuple[int, int]] = []
    run = Run(pool, progress=lambda documents, tokens: seen.append((documents, tokens)))
    parts = PromptParts(contexts=(WORDS * 4,))
    (outcome,) = stage_of(tiny, rate=0.2, iterative_size=40).run([document(parts)], run)
    assert isinstance(outcome, Result)
    assert len(seen) > outcome.tokens_in / 40  # one for every segment
    assert max(tokens for _, tokens in seen) < 0.3 * outcome.tokens_in
    assert sum(tokens for _, tokens in seen) == outcome.tokens_in


def test_a_stopping_run_stops_between_passes(pool: ModelPool, tiny: str) -> None:
    asked = iter([False] * 5)
    seen: list[int] = []
    run = Run(pool, stopping=lambda: next(asked, True), progress=lambda documents, tokens: seen.append(documents))
    with pytest.raises(Stopped):
        six_documents(tiny, run)
    assert sum(seen) < 6


def test_seconds_are_shared_by_tokens(compressing: Compressing) -> None:
    short, long = PromptParts(contexts=(WORDS[:400],)), PromptParts(contexts=(WORDS[:800],))
    first, second = compressing(short, long, rate=0.5)
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert first.seconds / first.tokens_in == pytest.approx(second.seconds / second.tokens_in)


def test_equal_contexts_are_scored_once(compressing: Compressing, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    real = reading.surprisals

    def counting(scorer: Any, texts: Any, *rest: Any) -> Any:
        scored.append(len(texts))
        return real(scorer, texts, *rest)

    monkeypatch.setattr(contexts, "surprisals", counting)
    compressing(PROMPT, PROMPT, PROMPT, target_tokens=60)
    assert sum(scored) == len(set(PROMPT.contexts))


def test_an_unknown_method_is_named_with_the_known_ones(pool: ModelPool, tiny: str) -> None:
    spec = LLMLinguaSpec(kind="compress", rate=0.5).model_copy(update={"method": "gzip"})
    with pytest.raises(ValueError, match=r"no method 'gzip'; there are .*llmlingua"):
        build_method(spec, pool, Tokenising(load_tokenizer(tiny)))
