"""Kept units -> text that fits the budget. Text is only ever cut out of the original, never decoded from tokens."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import SPACE, kinds_of
from pipeline.compression.edges import word_edges
from pipeline.compression.layout import stripped, text_of
from pipeline.compression.prompt import Prompt, too_small
from pipeline.compression.registry import Ranking
from pipeline.compression.removed import SHARE, listed, phrases_of, with_list
from pipeline.compression.tokens import Tokenising
from pipeline.stages import Refusal
from schemas.document import SEPARATOR

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ENOUGH = 0.99  # of the budget: a nearer fit is not worth another count
GUESSES = 6  # by planned costs; then the search halves its bracket
FILLS = 24  # most counts to fill what is left
TRIES = 16  # units of which the cheapest is looked for


@dataclass(frozen=True, slots=True)
class Fitted:
    """The compressed prompt, its tokens, counted on this very text, and the characters it has of the original.

    ``spans`` is ``[n, 2]`` (from, to), in the order of the text: joined, they are the text, but for the characters
    ``listed`` (from, to) of it, a list of what was removed. ``kept``: which units it has.
    """

    text: str
    tokens: int
    spans: Ints
    kept: Bools
    listed: tuple[int, int] | None = None


@dataclass(slots=True)
class _Search:
    """The largest number of best-ranked units whose text fits: between ``low`` (fits) and ``high`` (does not).

    Those that are not ``wanted`` come last.
    """

    prompt: Prompt
    order: tuple[int, ...] | None
    forced: Bools
    wanted: Bools
    ranked: Ints
    costs: Ints
    high: int
    strict: bool
    best: Fitted
    low: int = 0
    guess: int = 0
    rounds: int = 0
    done: bool = False

    def kept(self, count: int) -> Bools:
        """The ``count`` best units beside those that must stay."""
        kept = self.forced.copy()
        kept[self.ranked[:count]] = True
        return kept

    def learn(self, found: Fitted) -> None:
        """Narrow the bracket with what the guess's text counted, and guess again."""
        room = self.prompt.budget - found.tokens
        if room >= 0:
            self.low, self.best = self.guess, found
        else:
            self.high = self.guess
        self.rounds += 1
        self.done = self.high - self.low <= 1 or (room >= 0 and found.tokens >= ENOUGH * self.prompt.budget)
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
    ranked = [_shared(prompt, ranking) for prompt, ranking in zip(prompts, rankings, strict=True)]
    fitted = _fit(prompts, ranked, target)
    return [
        _listing(prompt, ranking, one, target) if prompt.phrases and isinstance(one, Fitted) else one
        for prompt, ranking, one in zip(prompts, ranked, fitted, strict=True)
    ]


def _shared(prompt: Prompt, ranking: Ranking) -> Ranking:
    """The ranking that keeps to the prompt's shares."""
    if prompt.quota is None:
        return ranking
    return replace(ranking, margins=prompt.quota.loads(ranking.margins, prompt.costs(), prompt.forced()))


def _fit(prompts: Sequence[Prompt], rankings: Sequence[Ranking], target: Tokenising) -> list[Fitted | Refusal]:
    searches = [_begin(prompt, ranking) for prompt, ranking in zip(prompts, rankings, strict=True)]
    while waiting := [search for search in searches if not search.done]:
        kept = [search.kept(search.guess) for search in waiting]
        for search, found in zip(waiting, _counted(waiting, kept, target), strict=True):
            search.learn(found)
    return [_ended(search, target) for search in searches]


def _counted(searches: Sequence[_Search], kept: Sequence[Bools], target: Tokenising) -> list[Fitted]:
    """The texts of the units that are kept, and their tokens."""
    spans = [search.prompt.layout.spans(one, search.order) for search, one in zip(searches, kept, strict=True)]
    texts = [text_of(search.prompt.text, some) for search, some in zip(searches, spans, strict=True)]
    return [Fitted(*one) for one in zip(texts, target.count(texts), spans, kept, strict=True)]


def _ended(search: _Search, target: Tokenising) -> Fitted | Refusal:
    """What the search found, filled up; where that says nothing, something that does, if it fits."""
    if (found := _filled(search, search.best, target)).text.strip():
        return found
    least = _least(search, target)
    return least if isinstance(least, Refusal) else _filled(search, least, target)


def _filled(search: _Search, best: Fitted, target: Tokenising) -> Fitted:
    """The next unit in rank does not fit: fill what is left with lower ones that do, where that is wanted.

    In the end no unit is left that costs less than the room, as far as its planned cost tells; or the counts are spent.
    """
    budget = search.prompt.budget
    if search.strict or best.tokens >= ENOUGH * budget:
        return best
    costs = search.prompt.costs()
    rest, most = search.ranked[~best.kept[search.ranked]], len(search.ranked)
    if (wanted := search.wanted[rest]).any():
        rest = rest[wanted]
    for _ in range(FILLS):
        rest = rest[costs[rest] <= budget - best.tokens]
        if not len(rest) or best.tokens >= ENOUGH * budget:
            break
        some = rest[: max(1, min(most, np.searchsorted(np.cumsum(costs[rest]), budget - best.tokens, side="right")))]
        kept = best.kept.copy()
        kept[some] = True
        (found,) = _counted([search], [kept], target)
        if found.tokens <= budget:
            best, rest = found, rest[len(some) :]
        elif len(some) == 1:
            rest = rest[1:]  # at its joints it costs more than planned
        else:
            most = len(some) // 2
    return best


def _begin(prompt: Prompt, ranking: Ranking) -> _Search:
    forced = prompt.forced()
    ranked = np.flatnonzero(~np.isnan(ranking.margins) & ~forced)
    ranked = ranked[np.argsort(-ranking.margins[ranked], kind="stable")]
    costs = np.cumsum(prompt.costs()[ranked])
    spans = prompt.layout.spans(forced, ranking.order)
    best = Fitted(text_of(prompt.text, spans), prompt.fixed, spans, forced)
    wanted = np.isfinite(ranking.margins)
    search = _Search(prompt, ranking.order, forced, wanted, ranked, costs, len(ranked) + 1, ranking.strict, best)
    joints = prompt.separator * max(0, sum(part.role == "context" for part in prompt.parts) - 1)
    search.guess = int(np.searchsorted(search.costs, prompt.budget - prompt.fixed - joints, side="right"))
    search.guess = min(max(search.guess, 1), len(ranked))
    search.done = not len(ranked)
    return search


def _least(search: _Search, target: Tokenising) -> Fitted | Refusal:
    """What fitted says nothing: the cheapest unit that does, beside what must stay (white space), if even that fits."""
    prompt = search.prompt
    solid = np.append(0, np.cumsum(kinds_of(prompt.text)[0] != SPACE))[prompt.layout.edges]
    cells = prompt.layout.cells
    saying = np.flatnonzero(solid[cells + 1] > solid[cells])
    tries: list[Fitted] = []
    for unit in saying[np.argsort(prompt.costs()[saying], kind="stable")][:TRIES].tolist():
        kept = search.forced.copy()
        kept[unit] = True
        spans = prompt.layout.spans(kept, search.order)
        spans = spans if search.forced.any() else stripped(prompt.text, spans)
        tries.append(Fitted(text_of(prompt.text, spans), 0, spans, kept))
    counts = target.count([one.text for one in tries])
    counted = [replace(one, tokens=count) for one, count in zip(tries, counts, strict=True)]
    found = min(counted, key=lambda one: one.tokens)
    if (
        found.tokens > prompt.budget
        and not search.forced.any()
        and (head := _head(search, set(saying.tolist()), target))
    ):
        return head
    what = "what must stay" if search.forced.any() else "even its shortest part"
    return found if found.tokens <= prompt.budget else too_small(prompt.budget, found.tokens, what)


def _head(search: _Search, saying: set[int], target: Tokenising) -> Fitted | None:
    """The first words of the best unit of several, as many as fit: a short prompt may be a single sentence."""
    prompt = search.prompt
    unit = next((one for one in search.ranked.tolist() if one in saying), None)
    if unit is None:
        return None
    begin, end = prompt.layout.edges[prompt.layout.cells[unit] :][:2].tolist()
    words = np.flatnonzero(word_edges(kinds_of(prompt.text[begin:end])[0]))
    spans = [stripped(prompt.text, np.array([[begin, begin + word]])) for word in words[words > 0].tolist()]
    spans = [one for one in spans if len(one)]
    kept = search.forced.copy()
    kept[unit] = True

    def counted(place: int) -> Fitted:
        text = text_of(prompt.text, spans[place])
        return Fitted(text, target.count([text])[0], spans[place], kept)

    fits = bisect.bisect_right(range(len(spans)), prompt.budget, key=lambda place: counted(place).tokens)
    return counted(fits - 1) if fits and counted(fits - 1).tokens <= prompt.budget else None


def _listing(prompt: Prompt, ranking: Ranking, fitted: Fitted, target: Tokenising) -> Fitted:
    """``fitted`` anew, with the list of what was removed from it; as it is where there is no room for one."""
    phrases = phrases_of(prompt, ranking, fitted.kept)
    while phrases and target.count([listed(phrases)])[0] * SHARE > prompt.budget - prompt.fixed:
        phrases.pop()
    margins = ranking.margins.copy()
    for phrase in phrases:
        margins[phrase.first : phrase.end] = np.nan
    room = prompt.budget - target.count([listed(phrases) + SEPARATOR])[0]
    for _ in range(FILLS if phrases else 0):
        (found,) = _fit([replace(prompt, budget=room)], [replace(ranking, margins=margins)], target)
        if isinstance(found, Refusal) or room < prompt.fixed:
            break
        text, place = with_list(prompt, ranking, found.kept, listed(phrases))
        tokens = target.count([text])[0]
        if tokens <= prompt.budget:
            return Fitted(text, tokens, prompt.layout.spans(found.kept, ranking.order), found.kept, place)
        room -= tokens - prompt.budget
    return fitted
