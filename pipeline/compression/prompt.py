"""A document made ready for compression: its parts as units with their costs, and the budget of the whole."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.accounting.wording import counted
from pipeline.compression.layout import Layout
from pipeline.compression.quota import Quota
from pipeline.stages import Refusal
from schemas.document import PromptParts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Role = Literal["instruction", "context", "question"]


@dataclass(frozen=True, slots=True)
class Source:
    """A prompt and the rate at which it is wanted; None: the spec's own budget."""

    parts: PromptParts
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a prompt that is not empty.

    ``ids`` are the scoring model's tokens. Unit i is ``counts[i]`` of them from ``first[i]`` on, begins at character
    ``places[i]``, costs ``costs[i]`` tokens of the target's tokenizer, must stay if ``forced[i]``, and has the rate
    ``rates[i]`` of its own (nan: the prompt's), which it shares with all units of ``regions[i]`` (-1: none; 1 is
    verbatim). A verbatim part is one forced unit. ``length``: the sum of the costs; ``alone``: tokens of the target's
    tokenizer that the text has by itself; None: not known exactly.
    """

    role: Role
    text: str
    verbatim: bool
    ids: Ints
    first: Ints
    counts: Ints
    places: Ints
    costs: Ints
    forced: NDArray[np.bool_]
    rates: Floats
    regions: Ints
    length: int
    alone: int | None

    def alone_in_memory(self) -> Part:
        """The same, with arrays of its own."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        copies: dict[str, Any] = {name: one.copy() for name, one in every.items() if isinstance(one, np.ndarray)}
        return replace(self, **copies)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be shortened to ``budget`` of its ``original`` tokens; what must stay in it takes ``fixed`` alone.

    ``text`` is the whole prompt without markup, laid out by ``layout``; ``markup`` as in ``Marked``, but for the whole.
    ``separator``: tokens of a blank line. ``quota``: what each region may keep, where there are several.
    ``phrases``: most removed phrases that are listed after the contexts.
    """

    parts: tuple[Part, ...]
    text: str
    layout: Layout
    markup: Ints
    original: int
    budget: int
    fixed: int
    separator: int
    quota: Quota | None = None
    phrases: int = 0

    def costs(self) -> Ints:
        """Tokens of the target's tokenizer for every unit of every part, in order."""
        return np.concatenate([part.costs for part in self.parts])

    def forced(self) -> NDArray[np.bool_]:
        """Which of all units must stay."""
        return np.concatenate([part.forced for part in self.parts])

    def places(self, role: Role) -> list[int]:
        """Where in ``parts`` the parts of this role are."""
        return [place for place, part in enumerate(self.parts) if part.role == role]


@dataclass(frozen=True, slots=True)
class Copied:
    """A prompt whose budget is no smaller than itself. ``markup`` as in ``Prompt``."""

    text: str
    markup: Ints
    original: int
    budget: int


Ready = Prompt | Copied | Refusal


def too_small(budget: int, least: int, what: str = "what must stay") -> Refusal:
    """The refusal of a budget that cannot hold ``what``."""
    said = f"the budget is {counted(budget, 'token')}, but {what} takes {least}"
    return Refusal("budget_too_small", f"{said}: ask for at least {least}")
