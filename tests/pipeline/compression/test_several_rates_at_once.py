"""Several rates in one step: as good as each alone, for every method, and nothing read twice that need not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compress_models import document, stage_of
from tiny_models import save_tiny_classifier

from pipeline.compression.lanes import CHARACTERS, by_length
from pipeline.compression.recovering import recover
from pipeline.compression.registry import METHODS
from pipeline.compression.runs import words_of
from pipeline.models import ModelPool
from pipeline.stages import Outcome, Result, Run, Stage
from schemas.document import Document, PromptParts

RATES = [0.7, 0.45, 0.2]
CONTEXT = "Sam bought {} boxes with 30 pens each, and then sold {} boxes at 3 dollars per box to a friend. "
PROMPTS = [
    PromptParts("Answer.", tuple(CONTEXT.format(n, n + place) * 2 for place in range(3)), f"How many are {n}?")
    for n in range(3)
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> str:
    """A random token classifier with the scorer's tokenizer."""
    return str(save_tiny_classifier(tmp_path_factory.mktemp("classifier"), Path(tiny)))


@pytest.fixture(params=METHODS)
def stage(request: pytest.FixtureRequest, tiny: str, classifier: str) -> Stage:
    """A stage of each method, at several rates."""
    model = classifier if request.param == "llmlingua2" else tiny
    return stage_of(model, tiny, method=request.param, rates=RATES)


def copies(rates: list[float]) -> list[Document]:
    """Every prompt at each of the rates, side by side."""
    return [replace(document(parts, seq), rate=rate) for seq, parts in enumerate(PROMPTS) for rate in rates]


def output(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Result), outcome
    return {name: value for name, value in outcome.fields.items() if name != "compress_seconds"}


def test_every_copy_comes_out_as_it_would_alone(stage: Stage, pool: ModelPool) -> None:
    documents = copies(RATES)
    together = [output(one) for one in stage.run(documents, Run(pool))]
    for rate in RATES:
        alone = [output(one) for one in stage.run(copies([rate]), Run(pool))]
        assert [one for one in together if one["rate_asked"] == rate] == alone
    tokens = [one["tokens_compressed"] for one in together]
    assert all(tokens[at] > tokens[at + 1] > tokens[at + 2] for at in range(0, len(tokens), 3))
    for one, source in zip(together, documents, strict=True):
        back = recover(source.parts.render(), one["kept"], one["compressed"])
        assert set(words_of(one["compressed"]).words) <= set(words_of(back).words)


def test_no_batch_ends_among_the_copies_of_a_document() -> None:
    texts = [name for name in "abcd" for _ in RATES]
    assert by_length([5] * 12, 4, texts) == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)]
    assert by_length([5] * 3, 2) == [(0, 1), (2,)]
    assert [len(batch) for batch in by_length([5] * 70, 32, awaited=True)] == [4, 8, 16, 32, 10]
    assert [len(batch) for batch in by_length([5] * 6, 2, awaited=True)] == [1, 1, 1, 2, 1]
    assert [len(batch) for batch in by_length([5] * 20, 4, ["a"] * 20)] == [8, 8, 4]
    half = CHARACTERS // 2
    assert by_length([half + 1] * 4, 9, ["a", "a", "b", "b"]) == [(0, 1), (2, 3)]


READS = {
    "selective-context": "pipeline.compression.methods.selective_context.surprisals",
    "sentences": "pipeline.compression.methods.sentences.surprisals",
}


@pytest.mark.parametrize("method", READS)
def test_what_does_not_depend_on_the_rate_is_read_once(
    method: str, tiny: str, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many texts go through the model at three rates as at one."""
    module, _, name = READS[method].rpartition(".")
    real: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)
    texts: list[int] = []

    def counted(scorer: Any, some: Any, *rest: Any) -> Any:
        texts.append(len(some))
        return real(scorer, some, *rest)

    monkeypatch.setattr(READS[method], counted)
    stage = stage_of(tiny, method=method, rates=RATES)
    counts = []
    for rates in (RATES[:1], RATES):
        texts.clear()
        stage.run(copies(rates), Run(pool))
        counts.append(sum(texts))
    assert counts[0] == counts[1] > 0
