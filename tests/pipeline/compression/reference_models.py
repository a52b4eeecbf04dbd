"""What the tests of reference fidelity share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pipeline.compression.reference import punkt
from pipeline.compression.reference.reference import Reference, ReferenceResult
from pipeline.compression.scoring import Scorer
from pipeline.models import LoadedModel, ModelNotFound, pull
from schemas.document import PromptParts
from schemas.reference import ReferenceOptions

DATA = Path("tests/data/llmlingua")


@cache
def sentence_data() -> None:
    """Have nltk's sentence data in the cache."""
    try:
        punkt.load()
    except ModelNotFound:
        pull("punkt-english")


def engine_of(loaded: LoadedModel, options: ReferenceOptions, batch_tokens: int = 4096) -> Reference:
    """Reference fidelity over a loaded model."""
    return Reference(Scorer(loaded, batch_tokens), loaded.tokenizer, options)


def compressed(loaded: LoadedModel, parts: PromptParts, **options: Any) -> ReferenceResult:
    """One document's result."""
    (one,) = engine_of(loaded, ReferenceOptions(**options)).compress([parts])
    assert isinstance(one, ReferenceResult), one
    return one
