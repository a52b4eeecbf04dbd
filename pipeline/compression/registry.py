"""Compression methods by name. A new method is one module, one line here and its spec in ``schemas/compress.py``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.compression.prompt import Prompt
    from pipeline.compression.tokens import Tokenising
    from pipeline.models import ModelPool
    from schemas.compress import CompressSpec

METHODS = {
    "llmlingua": "pipeline.compression.methods.llmlingua:LLMLingua",
    "longllmlingua": "pipeline.compression.methods.longllmlingua:LongLLMLingua",
    "llmlingua2": "pipeline.compression.methods.llmlingua2:LLMLingua2",
    "selective-context": "pipeline.compression.methods.selective_context:SelectiveContext",
    "sentences": "pipeline.compression.methods.sentences:Sentences",
    "truncation": "pipeline.compression.methods.truncation:Truncation",
    "random": "pipeline.compression.methods.chance:Random",
    "tfidf": "pipeline.compression.methods.tfidf:TFIDF",
    "bm25": "pipeline.compression.methods.bm25:BM25",
}
"""Name -> class, imported when first used (torch takes seconds)."""

Passed = Callable[[int], None]
"""Called after a forward pass with the number of tokens it scored; what it raises ends the work."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a method makes of a prompt.

    ``margins``: one number for every unit of every part, in order; the highest are kept, as many as fit, those of
    ``-inf`` only once all others are, those of nan never. Units that must stay do, whatever they have here. ``order``:
    the places of all parts as they are to stand, where that is another order. ``strict``: no unit is kept without all
    that rank above it, though some of the budget be left (a truncated text has no gaps).
    """

    margins: NDArray[np.float64]
    order: tuple[int, ...] | None = None
    strict: bool = False


class Method(Protocol):
    """Ranks units. Tokenising, budgets of whole prompts and the final text are the same for all methods."""

    @property
    def tokenising(self) -> Tokenising:
        """The tokenizer whose tokens it scores: units are runs of them."""
        ...

    @property
    def abreast(self) -> int:
        """Most prompts that are worth scoring together."""
        ...

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """A ranking for every prompt. The numbers must not depend on which prompts come together."""
        ...


def build_method(spec: CompressSpec, models: ModelPool, target: Tokenising) -> Method:
    """The method ``spec.method``, its models loaded. ``target`` counts budgets; units are its where no model scores."""
    if spec.method not in METHODS:
        raise ValueError(f"compress: no method {spec.method!r}; there are {', '.join(sorted(METHODS))}")
    module, _, name = METHODS[spec.method].partition(":")
    method: Method = getattr(importlib.import_module(module), name).build(spec, models, target)
    return method
