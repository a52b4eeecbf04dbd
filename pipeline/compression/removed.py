"""The most important removed phrases, listed after the contexts: a reader learns what the text was about besides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.layout import text_of
from pipeline.compression.prompt import Prompt
from pipeline.compression.registry import Ranking
from pipeline.compression.sentences import phrase_starts
from schemas.document import SEPARATOR

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MOST_UNITS = 8
"""Units in a listed phrase: it is to name something, not to bring it back."""

SHARE = 5
"""The list takes at most one part in so many of what is not verbatim."""

LABEL = "Left out above: "


@dataclass(frozen=True, slots=True)
class Phrase:
    """A run of removed units, from ``first`` to before ``end``, and what it says."""

    first: int
    end: int
    text: str


def phrases_of(prompt: Prompt, ranking: Ranking, kept: Bools) -> list[Phrase]:
    """The ``prompt.phrases`` removed runs of contexts with the highest mean margin, the highest first.

    A run ends where a phrase does, and after ``MOST_UNITS`` units; of a removed sentence its first phrase stands. Ones
    that say the same as a better one, or as the kept text, are left out, and so are those of which nothing was scored.
    """
    margins = np.where(np.isfinite(ranking.margins), ranking.margins, np.nan)
    compressed = text_of(prompt.text, prompt.layout.spans(kept, ranking.order)).casefold()
    found: dict[str, Phrase] = {}
    edges = np.unique(np.fromiter(phrase_starts(prompt.text), np.int64))
    runs = [run for run in _runs(prompt, kept, edges) if np.isfinite(margins[run[0] : run[1]]).any()]
    for first, end in sorted(runs, key=lambda run: -float(np.nanmean(margins[run[0] : run[1]]))):
        text = _said(prompt, first, end, edges)
        says = text.casefold()
        if any(char.isalnum() for char in says) and says not in compressed and says not in found:
            found[says] = Phrase(first, end, text)
        if len(found) == prompt.phrases:
            break
    return list(found.values())


def listed(phrases: list[Phrase]) -> str:
    """The list as it stands in the prompt, in the order of the text, with the blank line before it."""
    ordered = sorted(phrases, key=lambda one: one.first)
    return f"{SEPARATOR}{LABEL}{'; '.join(phrase.text for phrase in ordered)}"


def with_list(prompt: Prompt, ranking: Ranking, kept: Bools, words: str) -> tuple[str, tuple[int, int]]:
    """The compressed text with the list ``words`` after its contexts, and where (from, to) it stands.

    Without what stands there, one blank line with it, the text is that of the kept units.
    """
    asked = np.zeros(len(prompt.parts), dtype=bool)
    asked[prompt.places("question")] = True
    question = kept & asked[prompt.layout.parts]
    before = text_of(prompt.text, prompt.layout.spans(kept & ~question, ranking.order))
    after = text_of(prompt.text, prompt.layout.spans(question, ranking.order))
    if not before:
        words = words.removeprefix(SEPARATOR) + (SEPARATOR if after else "")
        return words + after, (0, len(words))
    end = len(before) + len(words)
    return before + words + (SEPARATOR + after if after else ""), (len(before), end)


_MARKS = " \t\r\n,;:.!?…()[]{}\"'“”‘’«»–—-*#|，。；：！？、"


def _edge(prompt: Prompt, unit: int, after: int = 0) -> int:
    return int(prompt.layout.edges[prompt.layout.cells[unit] + after])


def _said(prompt: Prompt, first: int, end: int, edges: Ints) -> str:
    """What a run says, up to the end of its first phrase, without the marks around it."""
    begin, stop = _edge(prompt, first), _edge(prompt, end - 1, 1)
    for edge in [*edges[np.searchsorted(edges, begin + 1) :][:8].tolist(), stop]:
        text = " ".join(prompt.text[begin : min(edge, stop)].split()).strip(_MARKS)
        if " " in text or edge >= stop:
            return text
    return text


def _runs(prompt: Prompt, kept: Bools, edges: Ints) -> list[tuple[int, int]]:
    """Removed units of contexts that stand together, within one phrase."""
    layout = prompt.layout
    free = ~kept & np.isin(layout.parts, prompt.places("context"))
    phrase = np.searchsorted(edges, layout.edges[layout.cells + 1], side="left")
    changes = (np.diff(phrase, prepend=-1) != 0) | (np.diff(layout.parts, prepend=-1) != 0)
    changes |= np.diff(free, prepend=False)
    first = np.flatnonzero(changes)
    end = np.append(first[1:], len(free))
    some = free[first]
    return [
        (begin, min(begin + MOST_UNITS, stop))
        for begin, stop in zip(first[some].tolist(), end[some].tolist(), strict=True)
    ]
