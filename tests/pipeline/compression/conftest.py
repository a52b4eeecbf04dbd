"""Models and the compress stage over them, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from classifier_models import save_classifier
from compress_models import TOKENIZERS, Compressing, document, save_model, save_tokenizer, stage_of

from pipeline.models import ModelPool
from pipeline.stages import Outcome, Run
from schemas.document import PromptParts


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama with a window of 256 tokens."""
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model, whose tokenizer knows little more than bytes."""
    return save_model(tmp_path_factory.mktemp("bytewise"), vocabulary=280)


@pytest.fixture(scope="session")
def counters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tokenizers of other kinds, by kind; no model comes with them."""
    return {kind: save_tokenizer(tmp_path_factory.mktemp(kind), kind) for kind in TOKENIZERS}


@pytest.fixture(scope="session")
def pool() -> Iterator[ModelPool]:
    """Models of this test run, on the CPU."""
    pool = ModelPool("cpu", limit=4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token classifier for LLMLingua-2, with a window of 48 tokens."""
    return save_classifier(tmp_path_factory.mktemp("small-classifier"))


@pytest.fixture(scope="session")
def compressing(pool: ModelPool, tiny: str, small_classifier: str) -> Compressing:
    """``compressing(parts, ..., target=..., **settings)``: their outcomes through the stage."""

    def run(*sources: PromptParts, target: str | None = None, **settings: Any) -> list[Outcome]:
        model = small_classifier if settings.get("method") == "llmlingua2" else tiny
        stage = stage_of(model, target or tiny, **settings)
        return stage.run([document(parts, seq) for seq, parts in enumerate(sources)], Run(pool))

    return run
