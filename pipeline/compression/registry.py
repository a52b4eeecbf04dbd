"""Compression methods by name. A new method is one module, one line here and its name in ``CompressSpec.method``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.compression.prompt import Prompt
    from pipeline.compression.scoring import Passed, Scorer
    from schemas.stage import CompressSpec

METHODS = {"llmlingua": "pipeline.compression.llmlingua:LLMLingua"}
"""Name -> class, imported when first used (torch takes seconds)."""


class Method(Protocol):
    """Ranks units. Tokenising, budgets of whole prompts and the final text are the same for all methods."""

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[NDArray[np.float64]]:
        """A margin for every unit of every prompt, in order of its parts; the highest are kept, as many as fit.

        Verbatim parts (one unit each) have ``inf``; ``-inf`` is never kept. The numbers must not depend on which
        prompts come together.
        """
        ...


def build_method(spec: CompressSpec, scorer: Scorer, start: int, separator: NDArray[np.int64]) -> Method:
    """The method ``spec.method``. ``start``, ``separator``: the scorer's tokens for a text's start and a blank line."""
    if spec.method not in METHODS:
        raise ValueError(f"compress: no method {spec.method!r}; there are {', '.join(sorted(METHODS))}")
    module, _, name = METHODS[spec.method].partition(":")
    method: Method = getattr(importlib.import_module(module), name).build(spec, scorer, start, separator)
    return method
