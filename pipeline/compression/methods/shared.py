"""What methods share that give a unit the same score at whatever rate: one prompt's work serves all its variants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.prompt import Prompt
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.tokens import Tokenising

Floats = NDArray[np.float64]


def distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[int]]:
    """Prompts of different parts, and for every prompt its place among them.

    A document's variants at several rates hold the very same parts: equal objects, not only equal text.
    """
    places: dict[tuple[int, ...], int] = {}
    which = [places.setdefault(tuple(map(id, prompt.parts)), len(places)) for prompt in prompts]
    first = {place: prompt for prompt, place in zip(reversed(prompts), reversed(which), strict=True)}
    return [first[place] for place in range(len(places))], which


@dataclass(frozen=True, slots=True)
class Plain(ABC):
    """A method without a model, over units of the target's own tokens. A leaf overrides ``margins``."""

    tokenising: Tokenising
    STRICT: ClassVar[bool] = False

    @property
    def abreast(self) -> int:
        """Nothing is gained by larger batches: a document is tokenised while the one before it is ranked."""
        return 32

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """Margins of every prompt, worked out once for all its rates. ``passed`` is told a prompt's tokens."""
        some, which = distinct(prompts)
        found = []
        for prompt in some:
            found.append(self.margins(prompt))
            passed(prompt.original)
        return [Ranking(found[place], strict=self.STRICT) for place in which]

    @abstractmethod
    def margins(self, prompt: Prompt) -> Floats:
        """One number per unit of every part, in order; the highest are kept."""


def ranked(*keys: NDArray[Any]) -> Floats:
    """Margins by several keys, the first of which counts most: equal ones are told apart by the next.

    What is equal in all of them is ranked by its place, the earlier first.
    """
    count = len(keys[0])
    order = np.lexsort((-np.arange(count), *reversed(keys)))
    margins = np.empty(count)
    margins[order] = np.arange(count)
    return margins
