"""Kept units -> text that fits the budget. Text is only ever cut out of the original, never decoded from tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.layout import stripped, text_of
from pipeline.compression.prompt import Prompt, too_small
from pipeline.compression.registry import Ranking
from pipeline.compression.tokens import Tokenising
from pipeline.stages import Refusal

Ints = NDArray[np.int64]
ENOUGH = 0.99  # of the budget: a nearer fit is not worth another count
GUESSES = 6  # by planned costs; then the search halves its bracket


@dataclass(frozen=True, slots=True)
class Fitted:
    """The compressed prompt, its tokens, counted on this very text, and the characters it has of the original.

    ``spans`` is ``[n, 2]`` (from, to), in the order of the text: joined, they are the text.
    """

    text: str
    tokens: int
    spans: Ints


@dataclass(slots=True)
class _Search:
    """The largest number of best-ranked units whose text fits: between ``low`` (fits) and ``high`` (does not)."""

    prompt: Prompt
    order: tuple[int, ...] | None
    forced: NDArray[np.bool_]
    ranked: Ints
    costs: Ints
    high: int
    strict: bool = False
    low: int = 0
    guess: int = 0
    rounds: int = 0
    best: Fitted = field(default_factory=lambda: Fitted("", 0, np.zeros((0, 2), np.int64)))
    done: bool = False

    def spans(self, count: int, more: Ints | None = None) -> Ints:
        """What the ``count`` best units, and the units ``more``, take beside those that must stay."""
        kept = self.forced.copy()
        kept[self.ranked[:count]] = True
        if more is not None:
            kept[more] = True
        return self.prompt.layout.spans(kept, self.order)

    def learn(self, text: str, tokens: int, spans: Ints) -> None:
        """Narrow the bracket with what the guess's text counted, and guess again."""
        room = self.prompt.budget - tokens
        if room >= 0:
            self.low, self.best = self.guess, Fitted(text, tokens, spans)
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


def fit(prompts: Sequence[Prompt], rankings: Sequence[Ranking], target: Tokenising) -> list[Fitted | Refusal]:
    """The best text within budget for every prompt: what must stay, and of the rest as many of the best as fit.

    What is counted is the final text itself, so the budget holds whatever the joints do to the tokens.
    """
    searches = [_begin(prompt, ranking) for prompt, ranking in zip(prompts, rankings, strict=True)]
    while waiting := [search for search in searches if not search.done]:
        spans = [search.spans(search.guess) for search in waiting]
        texts = [text_of(search.prompt.text, some) for search, some in zip(waiting, spans, strict=True)]
        for search, text, tokens, some in zip(waiting, texts, target.count(texts), spans, strict=True):
            search.learn(text, tokens, some)
    return [_filled(search, target) if search.best.text.strip() else _least(search, target) for search in searches]


def _filled(search: _Search, target: Tokenising) -> Fitted:
    """The next unit in rank does not fit: fill what is left with lower ones that do, where that is wanted."""
    if search.strict:
        return search.best
    budget, costs = search.prompt.budget, search.prompt.costs()
    rest = search.ranked[search.low :]
    small = rest[costs[rest] <= budget - search.best.tokens]
    count = int(np.searchsorted(np.cumsum(costs[small]), budget - search.best.tokens, side="right"))
    while count and search.best.tokens < ENOUGH * budget:
        spans = search.spans(search.low, small[:count])
        text = text_of(search.prompt.text, spans)
        if (tokens := target.count([text])[0]) <= budget:
            return Fitted(text, tokens, spans)
        count //= 2
    return search.best


def _begin(prompt: Prompt, ranking: Ranking) -> _Search:
    forced = prompt.forced()
    ranked = np.flatnonzero(np.isfinite(ranking.margins) & ~forced)
    ranked = ranked[np.argsort(-ranking.margins[ranked], kind="stable")]
    costs = np.cumsum(prompt.costs()[ranked])
    search = _Search(prompt, ranking.order, forced, ranked, costs, len(ranked) + 1, ranking.strict)
    if forced.any():
        spans = search.spans(0)
        search.best = Fitted(text_of(prompt.text, spans), prompt.fixed, spans)
    joints = prompt.separator * max(0, sum(part.role == "context" for part in prompt.parts) - 1)
    search.guess = int(np.searchsorted(search.costs, prompt.budget - prompt.fixed - joints, side="right"))
    search.guess = min(max(search.guess, 1), len(ranked))
    search.done = not len(ranked)
    return search


def _least(search: _Search, target: Tokenising) -> Fitted | Refusal:
    """What fitted says nothing: the cheapest unit that does, beside what must stay (white space), if even that fits."""
    prompt, tokens = search.prompt, search.prompt.original
    for unit in np.argsort(prompt.costs(), kind="stable").tolist():
        spans = search.spans(0, np.array([unit]))
        if not text_of(prompt.text, spans).strip():
            continue
        spans = spans if search.forced.any() else stripped(prompt.text, spans)
        text = text_of(prompt.text, spans)
        tokens = target.count([text])[0]
        if tokens <= prompt.budget:
            return Fitted(text, tokens, spans)
        break
    return too_small(prompt.budget, tokens)
