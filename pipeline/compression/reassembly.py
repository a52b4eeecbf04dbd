"""Kept units -> text that fits the budget. Text is only ever cut out of the original, never decoded from tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.prompt import Part, Prompt, too_small
from pipeline.compression.tokens import Tokenising
from pipeline.stages import Refusal
from schemas.document import PromptParts

Floats = NDArray[np.float64]
ENOUGH = 0.99  # of the budget: a nearer fit is not worth another count
GUESSES = 6  # by planned costs; then the search halves its bracket


@dataclass(frozen=True, slots=True)
class Fitted:
    """The compressed prompt and its tokens, counted on this very text."""

    text: str
    tokens: int


def assemble(prompt: Prompt, kept: NDArray[np.bool_]) -> PromptParts:
    """The parts with the kept units only; ``kept`` covers the units of all parts, in order. Parts left empty vanish."""
    instruction, question, contexts = "", "", []
    ends = np.cumsum([len(part.places) for part in prompt.parts])[:-1]
    for part, mask in zip(prompt.parts, np.split(kept, ends), strict=True):
        text = _slices(part, mask)
        if part.role == "instruction":
            instruction = text
        elif part.role == "question":
            question = text
        else:
            contexts.append(text)
    return PromptParts(instruction, tuple(contexts), question)


def _slices(part: Part, mask: NDArray[np.bool_]) -> str:
    if mask.all():
        return part.text
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    places = np.append(part.places, len(part.text))[edges].tolist()
    return "".join(part.text[begin:end] for begin, end in zip(places[::2], places[1::2], strict=True))


@dataclass(slots=True)
class _Search:
    """The largest number of best-ranked units whose text fits: between ``low`` (fits) and ``high`` (does not)."""

    prompt: Prompt
    order: NDArray[np.int64]
    costs: NDArray[np.int64]
    units: int
    forced: NDArray[np.int64]
    high: int = 0
    low: int = 0
    guess: int = 0
    rounds: int = 0
    best: Fitted = field(default_factory=lambda: Fitted("", 0))
    done: bool = False

    def mask(self, count: int) -> NDArray[np.bool_]:
        kept = np.zeros(self.units, dtype=bool)
        kept[self.forced] = True
        kept[self.order[:count]] = True
        return kept

    def text(self) -> str:
        return assemble(self.prompt, self.mask(self.guess)).render()

    def learn(self, text: str, tokens: int) -> None:
        """Narrow the bracket with what the guess's text counted, and guess again."""
        room = self.prompt.budget - tokens
        if room >= 0:
            self.low, self.best = self.guess, Fitted(text, tokens)
        else:
            self.high = self.guess
        self.rounds += 1
        self.done = self.high - self.low <= 1 or (room >= 0 and tokens >= ENOUGH * self.prompt.budget)
        if not self.done:
            self.guess = self._next(room)

    def _next(self, room: int) -> int:
        if self.rounds > GUESSES:
            return (self.low + self.high) // 2
        spent = int(self.costs[self.guess - 1]) if self.guess else 0
        wanted = int(np.searchsorted(self.costs, spent + room, side="right"))
        return min(max(wanted, self.low + 1), self.high - 1)


def fit(prompts: Sequence[Prompt], margins: Sequence[Floats], target: Tokenising) -> list[Fitted | Refusal]:
    """The best text within budget for every prompt.

    ``margins`` ranks the units of each prompt: the highest are kept, as many as fit; ``inf`` is always kept, ``-inf``
    never. What is counted is the final text itself, so the budget holds whatever the joints do to the tokens.
    """
    searches = [_begin(prompt, margin) for prompt, margin in zip(prompts, margins, strict=True)]
    while open_ones := [search for search in searches if not search.done]:
        texts = [search.text() for search in open_ones]
        for search, text, tokens in zip(open_ones, texts, target.count(texts), strict=True):
            search.learn(text, tokens)
    return [_filled(search, target) if search.best.text.strip() else _least(search, target) for search in searches]


def _filled(search: _Search, target: Tokenising) -> Fitted:
    """The next unit in rank does not fit: fill what is left with lower ones that do."""
    room = search.prompt.budget - search.best.tokens
    rest = search.order[search.low :]
    small = rest[search.prompt.costs()[rest] <= room]
    count = int(np.searchsorted(np.cumsum(search.prompt.costs()[small]), room, side="right"))
    while count and search.best.tokens < ENOUGH * search.prompt.budget:
        kept = search.mask(search.low)
        kept[small[:count]] = True
        text = assemble(search.prompt, kept).render()
        if (tokens := target.count([text])[0]) <= search.prompt.budget:
            return Fitted(text, tokens)
        count //= 2
    return search.best


def _begin(prompt: Prompt, margin: Floats) -> _Search:
    forced, ranked = np.flatnonzero(np.isposinf(margin)), np.flatnonzero(np.isfinite(margin))
    order = ranked[np.argsort(-margin[ranked], kind="stable")]
    costs = np.cumsum(prompt.costs()[order])
    search = _Search(prompt, order, costs, len(margin), forced, high=len(order) + 1)
    if len(forced):
        search.best = Fitted(assemble(prompt, search.mask(0)).render(), prompt.fixed)
    joints = prompt.separator * max(0, sum(part.role == "context" for part in prompt.parts) - 1)
    search.guess = int(np.searchsorted(costs, prompt.budget - prompt.fixed - joints, side="right"))
    search.guess = min(max(search.guess, 1), len(order))
    search.done = not len(order)
    return search


def _least(search: _Search, target: Tokenising) -> Fitted | Refusal:
    """What fitted says nothing: the cheapest unit that does, beside what must stay (white space), if even that fits."""
    best = Fitted("", search.prompt.original)
    for unit in np.argsort(search.prompt.costs(), kind="stable").tolist():
        kept = search.mask(0)
        kept[unit] = True
        text = assemble(search.prompt, kept).render()
        if text.strip():
            text = text if len(search.forced) else text.strip()
            best = Fitted(text, target.count([text])[0])
            break
    return best if best.text and best.tokens <= search.prompt.budget else too_small(search.prompt.budget, best.tokens)
