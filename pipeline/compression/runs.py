"""Words of a text, and the longest runs of one text's words that stand in another. Array work, about linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import JOINING, SPACE, WORD, ZERO_WIDTH_JOINER, kinds_of

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text and their characters ``places[n, 2]`` (from, to)."""

    words: list[str]
    places: Ints


def words_of(text: str) -> Words:
    """Runs of letters and digits; any other visible character by itself, as every one in scripts without spaces.

    Marks and joined emoji stay with what they belong to.
    """
    if not text:
        return Words([], np.zeros((0, 2), np.int64))
    kinds, points = kinds_of(text)
    joined = (kinds == JOINING) | (np.append(0, points[:-1]) == ZERO_WIDTH_JOINER)
    base = np.maximum.accumulate(np.where(joined, 0, np.arange(len(kinds))))
    before = np.append(np.uint8(SPACE), kinds[:-1])
    base_before = np.append(np.uint8(SPACE), kinds[base][:-1])
    goes_on = (before != SPACE) & (joined | ((kinds == WORD) & (base_before == WORD)))
    begins = np.flatnonzero((kinds != SPACE) & ~goes_on)
    spaces = np.append(np.flatnonzero(kinds == SPACE), len(kinds))
    ends = np.minimum(np.append(begins[1:], len(kinds)), spaces[np.searchsorted(spaces, begins)])[: len(begins)]
    return Words([text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)],
                 np.stack([begins, ends], 1))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Runs:
    """Where runs of one text's words stand in another's.

    ``ids`` numbers the words of the source and, from ``first`` on, those of the text that is looked up; equal words
    have equal numbers. ``word`` is the source's word at each place, -1 at a break, which has a number of its own.
    ``ranks[k]`` tells runs of 2^k words apart: equal at two places where those are equal, -1 beyond the end.
    """

    ids: Ints
    first: int
    word: Ints
    ranks: tuple[Ints, ...]

    @classmethod
    def of(cls, source: Sequence[str], text: Sequence[str], breaks: NDArray[np.bool_]) -> Runs:
        """``breaks``: before which words of the source a run must end. (The first is one.)"""
        numbers: dict[str, int] = {}
        of_source = np.array([numbers.setdefault(word, len(numbers)) for word in source], np.int64)
        of_text = np.array([numbers.setdefault(word, len(numbers)) for word in text], np.int64)
        places = np.flatnonzero(breaks)
        fresh = len(numbers) + np.arange(len(places) + 1)
        before = np.insert(of_source, places, fresh[:-1])
        word = np.insert(np.arange(len(of_source)), places, -1)
        ids = np.concatenate([before, fresh[-1:], of_text])
        return cls(ids, len(before) + 1, word, _ranks(ids, len(before) + 1))

    def found(self, best: Callable[[Ints, int], int]) -> Iterator[tuple[int, int, int]]:
        """From left to right the longest runs: first word, number of words, and the word of the source they are at.

        ``best`` chooses that one of all it may be, given their number of words. Words that do not stand in the source
        are passed over.
        """
        index = [_by_rank(rank[: self.first]) for rank in self.ranks]
        highest = np.full(len(self.ids) - self.first, -1)
        for rank in self.ranks:
            highest += _occurs(rank, self.first)
        known: dict[bytes, tuple[int, int]] = {}
        place = self.first
        while place < self.first + len(highest):
            level = int(highest[place - self.first])
            if level < 0:
                place += 1
                continue
            # No run of 2^(level + 1) words from here stands in the source, so these words decide what is found.
            key = self.ids[place : place + 2 ** (level + 1)].tobytes()
            if key not in known:
                count, words = self._longest(place, level, index[level].places(int(self.ranks[level][place])))
                known[key] = count, best(words, count)
            yield place - self.first, *known[key]
            place += known[key][0]

    def _longest(self, place: int, level: int, candidates: Ints) -> tuple[int, Ints]:
        """The longest run from ``place``, whose first 2^level words stand at ``candidates``, in halving steps."""
        count = 2**level
        for rank, step in zip(self.ranks[:level][::-1], (2**k for k in range(level - 1, -1, -1)), strict=True):
            if place + count >= len(self.ids) or rank[place + count] < 0:
                continue
            more = candidates[rank[candidates + count] == rank[place + count]]
            if len(more):
                candidates, count = more, count + step
        return count, self.word[candidates]


@dataclass(frozen=True, slots=True)
class _Index:
    """Places sorted by rank; those of rank r are ``order[heads[r]:heads[r + 1]]``, in order."""

    order: Ints
    heads: Ints

    def places(self, rank: int) -> Ints:
        """All places of this rank."""
        return self.order[self.heads[rank] : self.heads[rank + 1]]


def _by_rank(rank: Ints) -> _Index:
    order = np.argsort(rank, kind="stable")
    return _Index(order, np.searchsorted(rank[order], np.arange(int(rank.max(initial=0)) + 2)))


def _ranks(ids: Ints, first: int) -> tuple[Ints, ...]:
    """Prefix doubling, up to the longest power of two at which anything from ``first`` on stands before it."""
    found: list[Ints] = []
    rank = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    while _occurs(rank, first).any():
        found.append(np.append(rank, np.full(len(ids) - len(rank), -1)))
        width = 2 ** (len(found) - 1)
        pairs = rank[:-width] * (int(rank.max()) + 1) + rank[width:]
        rank = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
    return tuple(found)


def _occurs(rank: Ints, first: int) -> NDArray[np.bool_]:
    """For each place from ``first`` on, whether its rank is that of a place before ``first``."""
    seen = np.zeros(int(rank.max(initial=-1)) + 2, dtype=bool)
    seen[rank[:first]] = True
    seen[-1] = False  # what lies beyond the end
    occurs: NDArray[np.bool_] = seen[rank[first:]]
    return occurs
