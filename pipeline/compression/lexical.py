"""Words, how often they come in which sentence and context, and what that makes of them: BM25 and TF-IDF.

A document's own sentences, or its own contexts, are the collection: no corpus, so no document's score depends on
another. Words are runs of letters and digits, without their case; in scripts without spaces, single characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import UNSPACED_CLASS
from pipeline.compression.prompt import Prompt
from pipeline.compression.sentences import sentence_ends

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_WORD = re.compile(f"[{UNSPACED_CLASS}]|[^\\W_{UNSPACED_CLASS}]+")


@dataclass(frozen=True, slots=True)
class Words:
    """Every word of a prompt, in order: its number ``word[i]``, and the unit, sentence and part it begins in.

    Units and sentences are numbered through the whole prompt; unit u begins in sentence ``sentence_of[u]`` of part
    ``part_of[u]``.
    """

    word: Ints
    unit: Ints
    sentence: Ints
    part: Ints
    vocabulary: int
    sentence_of: Ints
    part_of: Ints

    @classmethod
    def of(cls, prompt: Prompt) -> Words:
        """The words of all parts."""
        numbers: dict[str, int] = {}
        units, sentences = 0, 0
        columns: list[list[Ints]] = [[], [], [], [], [], []]
        for place, part in enumerate(prompt.parts):
            found = [(one.start(), one.group().casefold()) for one in _WORD.finditer(part.text)]
            begins = np.array([start for start, _ in found], dtype=np.int64)
            heads = _sentences(part.text)
            rows: Iterable[Ints] = (
                np.array([numbers.setdefault(word, len(numbers)) for _, word in found], dtype=np.int64),
                units + np.searchsorted(part.places, begins, side="right") - 1,
                sentences + np.searchsorted(heads, begins, side="right") - 1,
                np.full(len(found), place),
                sentences + np.searchsorted(heads, part.places, side="right") - 1,
                np.full(len(part.places), place),
            )
            for column, row in zip(columns, rows, strict=True):
                column.append(row)
            units, sentences = units + len(part.places), sentences + len(heads)
        word, unit, sentence, part_, sentence_of, part_of = (np.concatenate(column) for column in columns)
        return cls(word, unit, sentence, part_, len(numbers), sentence_of, part_of)

    def query(self, prompt: Prompt) -> Floats:
        """How often each word is asked for: in the question, or, where that has no words, in all contexts."""
        for role in ("question", "context"):
            asked = np.isin(self.part, prompt.places(role))
            if asked.any():
                break
        return np.bincount(self.word[asked], minlength=self.vocabulary).astype(np.float64)

    def by_sentence(self) -> Counts:
        """How often words come in each sentence."""
        return Counts.of(self.word, self.sentence, int(self.sentence_of.max()) + 1, self.vocabulary)

    def mean_by_unit(self, values: Floats) -> Floats:
        """The mean of ``values`` (one per word in the text) over the words of every unit; 0 where it has none."""
        count = np.bincount(self.unit, minlength=len(self.part_of))
        return np.bincount(self.unit, weights=values, minlength=len(self.part_of)) / np.maximum(1, count)


@dataclass(frozen=True, slots=True)
class Counts:
    """How often words come in passages: entry e says ``times[e]`` times word ``word[e]`` in passage ``passage[e]``.

    ``entry[i]`` is that of the i-th word in the text. ``size``: passages, some of which may have no words.
    """

    passage: Ints
    word: Ints
    times: Ints
    entry: Ints
    size: int
    vocabulary: int

    @classmethod
    def of(cls, word: Ints, passage: Ints, size: int, vocabulary: int) -> Counts:
        """Counts of the words ``word[i]`` in ``passage[i]``, of which there are ``size``."""
        keys, entry, times = np.unique(passage * max(1, vocabulary) + word, return_inverse=True, return_counts=True)
        return cls(keys // max(1, vocabulary), keys % max(1, vocabulary), times, entry, size, vocabulary)

    def passages_with(self) -> Ints:
        """In how many passages each word comes: its document frequency."""
        return np.bincount(self.word, minlength=self.vocabulary)

    def total(self, weights: Floats) -> Floats:
        """The sum of ``weights``, one per entry, over every passage."""
        return np.asarray(np.bincount(self.passage, weights=weights, minlength=self.size), dtype=np.float64)


def bm25(counts: Counts, query: Floats, k1: float, b: float) -> Floats:
    """How well each passage answers the query (Robertson and Zaragoza 2009, equation 3.15; ``query``: times asked).

    sum over words: query * idf * tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)), with
    idf = ln(1 + (N - n + 0.5) / (n + 0.5)) for a word in n of N passages: Lucene's, never negative.
    """
    lengths = counts.total(counts.times.astype(np.float64))
    relative = lengths / max(1.0, float(lengths.mean()))
    hold = k1 * (1 - b + b * relative[counts.passage])
    saturated = counts.times * (k1 + 1) / (counts.times + hold)
    return counts.total(query[counts.word] * bm25_idf(counts)[counts.word] * saturated)


def bm25_idf(counts: Counts) -> Floats:
    """The idf of ``bm25``, for every word."""
    have = counts.passages_with()
    return np.log1p((counts.size - have + 0.5) / (have + 0.5))


def tf_idf(counts: Counts) -> Floats:
    """TF-IDF of every entry: (1 + ln tf) * (1 + ln((1 + N) / (1 + n))), scikit-learn's (sublinear tf, smooth idf)."""
    return (1 + np.log(counts.times)) * _idf(counts)[counts.word]


def likeness(counts: Counts, query: Floats) -> Floats:
    """The cosine between the TF-IDF of each passage and that of the query."""
    asked = np.where(query > 0, 1 + np.log(np.maximum(1, query)), 0) * _idf(counts)
    weights = tf_idf(counts)
    norms = np.sqrt(counts.total(weights**2)) * np.sqrt((asked**2).sum())
    return counts.total(weights * asked[counts.word]) / np.where(norms > 0, norms, 1)


def unit_weights(words: Words) -> Floats:
    """The mean TF-IDF of every unit's words within their sentences; 0 for units without a word."""
    counts = words.by_sentence()
    return words.mean_by_unit(tf_idf(counts)[counts.entry])


def context_relevance(prompt: Prompt, words: Words, score: Callable[[Counts, Floats], Floats]) -> Floats:
    """``score`` of every context, among the contexts alone, against the question; one number per part of the prompt.

    The other parts have infinity: they may be compressed too, but no context is put before them.
    """
    if not (places := prompt.places("context")):
        return np.full(len(prompt.parts), np.inf)
    contexts = np.array(places, dtype=np.int64)
    inside = np.isin(words.part, contexts)
    passages = np.searchsorted(contexts, words.part[inside])
    relevance = np.full(len(prompt.parts), np.inf)
    relevance[contexts] = score(
        Counts.of(words.word[inside], passages, len(contexts), words.vocabulary), words.query(prompt)
    )
    return relevance


def _idf(counts: Counts) -> Floats:
    return 1 + np.log((1 + counts.size) / (1 + counts.passages_with()))


def _sentences(text: str) -> Ints:
    """Where sentences begin, the white space before them included."""
    return np.unique(np.array([0, *(end for end in sentence_ends(text) if end < len(text))], dtype=np.int64))
