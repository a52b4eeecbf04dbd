"""LLMLingua-2 through the stage: budgets, units, one reading of what comes again, any script."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier_models import KINDS, TRAINING, save_classifier
from compress_models import document, stage_of, text_of

from pipeline.compression.classifier import Classifier
from pipeline.compression.engine import Compressed, Engine
from pipeline.compression.methods import llmlingua2
from pipeline.compression.methods.llmlingua2 import LLMLingua2, ShortTokens
from pipeline.compression.prompt import Source
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool, load_tokenizer
from pipeline.stages import Outcome, Refusal, Result, Run
from schemas.compress import LLMLingua2Spec
from schemas.document import PromptParts

AWKWARD = {
    "accents": "Café naïve Zoë Ångström déjà vu, coöperate façade; résumé über straße. " * 4,
    "japanese": "東京都に住んでいます。明日は雨が降るでしょう、そして風も強い。" * 6,
    "arabic": "ذهب الولد إلى المدرسة\u200f في الصباح الباكر، ثم عاد. " * 6,
    "emoji": "Look 👩\u200d👩\u200d👧 at 🏳️\u200d🌈 the 👍🏽 flags 🇩🇪🇫🇷 and 🤖 robots! " * 5,
    "control": "one\x00two \x07bell\ufeff tab\tand\r\nlines \u2028 odd \x1b[31m red " * 5,
    "code": 'def f(x):\n    return {"a": [x, "<b>"], "c": x**2}  # <tag/>\n\n' * 8,
    "endless": "x" * 3000,
}


@pytest.fixture(scope="module", params=KINDS)
def classifier_name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("classifier"), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("bert"))


def _run(pool: ModelPool, model: str, target: str, *sources: PromptParts, **settings: Any) -> list[Outcome]:
    stage = stage_of(model, target, method="llmlingua2", **settings)
    return stage.run([document(parts, seq) for seq, parts in enumerate(sources)], Run(pool))


def _kept(outcome: Outcome, parts: PromptParts) -> str:
    """The text put together again from the map of what was kept."""
    assert isinstance(outcome, Result), outcome
    edges, original = outcome.fields["kept"], parts.render()
    return "".join(original[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True))


def _method(pool: ModelPool, model: str) -> LLMLingua2:
    spec = LLMLingua2Spec(kind="compress", method="llmlingua2", model=model, rate=0.5)
    return LLMLingua2.build(spec, pool, Tokenising(load_tokenizer(model)))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_the_budget_holds_and_is_used(classifier_name: str, tiny: str, pool: ModelPool, rate: float) -> None:
    parts = PromptParts(contexts=(TRAINING * 2, TRAINING[:200]))
    (outcome,) = _run(pool, classifier_name, tiny, parts, rate=rate)
    text = text_of(outcome)
    assert isinstance(outcome, Result)
    asked, counted = outcome.fields["tokens_asked"], Tokenising(load_tokenizer(tiny)).count([text])[0]
    assert counted == outcome.fields["tokens_compressed"] <= asked
    assert counted >= 0.97 * asked or asked - counted <= 16
    assert _kept(outcome, parts) == text


@pytest.mark.parametrize("name", AWKWARD)
def test_text_of_any_kind_is_cut_out_of_the_original(
    name: str, classifier_name: str, tiny: str, pool: ModelPool
) -> None:
    parts = PromptParts(contexts=(AWKWARD[name],))
    (outcome,) = _run(pool, classifier_name, tiny, parts, rate=0.4)
    text = text_of(outcome)
    assert isinstance(outcome, Result)
    assert _kept(outcome, parts) == text
    assert 0.8 * outcome.fields["tokens_asked"] < outcome.fields["tokens_compressed"]
    assert set(text) <= set(AWKWARD[name])
    assert not text.startswith(("\u200d", "\ufe0f"))


def test_unknown_words_are_cut_up_without_a_gap(bert: str) -> None:
    text = "Sam " + "ж" * 200 + " pens " + "語" * 3 + " " + "z" * 65
    plain, short = Tokenising(load_tokenizer(bert)), ShortTokens(load_tokenizer(bert))
    (before,), (after,) = plain.tokenise([text]), short.tokenise([text])
    lengths = after.spans[:, 1] - after.spans[:, 0]
    assert (before.spans[:, 1] - before.spans[:, 0]).max() == 200
    assert lengths.max() <= llmlingua2.LONG_TOKEN
    covered = np.zeros(len(text), dtype=int)
    for begin, end in after.spans:
        covered[begin:end] += 1
    expected = np.array([not character.isspace() for character in text])
    np.testing.assert_array_equal(covered, expected)


def test_a_batch_is_as_many_single_documents(classifier_name: str, tiny: str, pool: ModelPool) -> None:
    sources = [PromptParts(contexts=(text[: 60 + 97 * place],)) for place, text in enumerate(AWKWARD.values())]
    sources += [PromptParts("Do this.", (TRAINING,), "How many?"), PromptParts(contexts=(TRAINING, "a b c d e f g h"))]
    together = _run(pool, classifier_name, tiny, *sources, rate=0.5)
    for parts, outcome in zip(sources, together, strict=True):
        assert text_of(_run(pool, classifier_name, tiny, parts, rate=0.5)[0]) == text_of(outcome)


def test_instruction_and_question_stay_verbatim_and_unread(bert: str, tiny: str, pool: ModelPool) -> None:
    parts = PromptParts("Answer the question, please:", (TRAINING,), "How many pens?")
    (outcome,) = _run(pool, bert, tiny, parts, rate=0.3)
    text = text_of(outcome)
    assert text.startswith("Answer the question, please:\n\n")
    assert text.endswith("\n\nHow many pens?")
    (small,) = _run(pool, bert, tiny, parts, target_tokens=3)
    assert isinstance(small, Refusal)
    assert small.code == "budget_too_small"


def test_a_unit_scores_the_mean_of_its_tokens_and_the_best_are_kept(bert: str, tiny: str, pool: ModelPool) -> None:
    stage = stage_of(bert, tiny, method="llmlingua2", rate=0.4)
    engine: Engine = stage.engine(pool)  # type: ignore[attr-defined]
    source = Source(PromptParts(contexts=(TRAINING,)))
    (prompt,) = engine.preparing.prepare([source])
    (part,) = prompt.parts  # type: ignore[union-attr]
    (ranking,) = engine.method.score([prompt], lambda tokens: None)  # type: ignore[list-item]
    (scores,) = Classifier(pool.token_classifier(bert), 512).keep([part.ids])
    edges = [*part.first.tolist(), len(part.ids)]
    means = [scores[begin:end].astype(float).mean() for begin, end in pairwise(edges)]
    np.testing.assert_allclose(ranking.margins, means, atol=1e-6)
    (batch,) = engine.run([source], lambda tokens: None)
    (made,) = batch.made
    assert isinstance(made, Compressed)
    assert made.fitted.spans is not None
    kept = np.array([any(b <= place < e for b, e in made.fitted.spans) for place in part.places])
    # One threshold for the document; only what did not fit any more may stand above it unkept.
    threshold = np.sort(ranking.margins)[::-1][int(kept.sum()) - 1]
    assert (ranking.margins[kept] >= threshold).mean() > 0.9


def test_what_comes_again_is_read_once(bert: str, pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(bert, bert, method="llmlingua2", rate=0.5)
    engine: Engine = stage.engine(pool)  # type: ignore[attr-defined]
    read: list[int] = []
    keep = Classifier.keep

    def counted(self: Classifier, texts: Any, passed: Any = lambda tokens: None) -> Any:
        read.append(len(texts))
        return keep(self, texts, passed)

    monkeypatch.setattr(Classifier, "keep", counted)
    shown = [f"Question {number}: {TRAINING[:80]}" for number in range(3)]
    several = [Source(PromptParts(contexts=(shown[0], shown[1])), rate) for rate in (0.5, 0.33, 0.2)]
    list(engine.run(several, lambda tokens: None))
    assert read == [2]
    list(engine.run([Source(PromptParts(contexts=(shown[2], shown[0])))], lambda tokens: None))
    assert read == [2, 1]


def test_memory_of_what_was_read_is_bounded(bert: str, pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmlingua2, "REMEMBERED", 100)
    method = _method(pool, bert)
    for number in range(20):
        method._remember({f"text {number}": np.zeros(30, np.float32)})
        assert sum(map(len, method.known.values())) <= 100


def test_a_batch_that_reads_does_not_mind_that_another_clears_the_memory(
    bert: str, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(bert, bert, method="llmlingua2", rate=0.5)
    engine: Engine = stage.engine(pool)  # type: ignore[attr-defined]
    sources = [
        Source(PromptParts(contexts=(TRAINING[:80], TRAINING[80:200]))),
        Source(PromptParts(contexts=(TRAINING,))),
    ]
    (first, second) = engine.preparing.prepare(sources)
    expected = engine.method.score([first, second], lambda tokens: None)  # type: ignore[list-item]
    engine.method.known.clear()  # type: ignore[attr-defined]
    engine.method.score([first], lambda tokens: None)  # type: ignore[list-item]
    keep = Classifier.keep

    def cleared(self: Classifier, texts: Any, passed: Any = lambda tokens: None) -> Any:
        engine.method.known.clear()  # type: ignore[attr-defined]
        return keep(self, texts, passed)

    monkeypatch.setattr(Classifier, "keep", cleared)
    found = engine.method.score([first, second], lambda tokens: None)  # type: ignore[list-item]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.margins, other.margins, atol=1e-5)


def test_its_options_are_its_own(bert: str, tmp_path: Path) -> None:
    for wrong in ({"iterative_size": 100}, {"granular_k": 2.0}, {"fidelity": "reference"}):
        with pytest.raises(ValueError, match=next(iter(wrong)) + "|llmlingua2:reference"):
            stage_of(bert, bert, method="llmlingua2", rate=0.5, **wrong)
