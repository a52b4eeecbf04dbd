"""BM25 and TF-IDF against their formulas worked out word by word, and words in any script."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from family_prompts import prompt_of, units_of

from pipeline.compression.lexical import Counts, Words, bm25, context_relevance, likeness, tf_idf, unit_weights
from schemas.document import PromptParts

CONTEXTS = (
    "The port of Rotterdam is large. Ships come and go.",
    "Apples and pears: the fruit of autumn. The apples are red, the pears are not.",
    "A ship left the port. The ship was red. Nobody saw the ship again.",
)
PARTS = PromptParts(contexts=CONTEXTS, question="Which ship left the port?")


def bags() -> list[Counter[str]]:
    return [Counter(re.findall(r"\w+", text.lower())) for text in CONTEXTS]


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_bm25_of_contexts_is_the_formula(k1: float, b: float) -> None:
    prompt, documents = prompt_of(PARTS), bags()
    mean = sum(sum(bag.values()) for bag in documents) / len(documents)
    expected = []
    for bag in documents:
        total = 0.0
        for word in ("which", "ship", "left", "the", "port"):
            have = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - have + 0.5) / (have + 0.5))
            hold = k1 * (1 - b + b * sum(bag.values()) / mean)
            total += idf * bag[word] * (k1 + 1) / (bag[word] + hold) if bag[word] else 0.0
        expected.append(total)
    found = context_relevance(prompt, Words.of(prompt), lambda counts, query: bm25(counts, query, k1, b))
    np.testing.assert_allclose(found[:3], expected)
    assert found[3] == np.inf


def test_likeness_is_the_cosine_of_tf_idf() -> None:
    prompt, documents = prompt_of(PARTS), bags()
    vocabulary = sorted(set().union(*documents, {"which"}))
    idf = [1 + math.log((1 + 3) / (1 + sum(word in bag for bag in documents))) for word in vocabulary]

    def vector(bag: Counter[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        values = [
            (1 + math.log(bag[word])) * one if bag[word] else 0.0 for word, one in zip(vocabulary, idf, strict=True)
        ]
        length = math.sqrt(sum(value**2 for value in values))
        return np.array([value / length for value in values])

    question = vector(Counter(["which", "ship", "left", "the", "port"]))
    expected = [float(vector(bag) @ question) for bag in documents]
    np.testing.assert_allclose(context_relevance(prompt, Words.of(prompt), likeness)[:3], expected)


def test_rare_words_weigh_more_than_common_ones() -> None:
    prompt = prompt_of(PromptParts(contexts=("The cat sat. The dog sat. The emu ran.",)))
    (part,) = prompt.parts
    words = [text.strip() for text in units_of(part)]
    weights = dict(zip(words, unit_weights(Words.of(prompt)).tolist(), strict=True))
    assert weights["emu"] > weights["sat"] > weights["The"] > weights["."] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("图书馆在左边。", 6),
        ("it's 12.5% of snake_case", 7),
        ("Straße STRASSE", 2),
        ("👩‍👩‍👧 🇫🇷", 0),
        ("المكتبة على يسار", 3),
        ("ひらがなとカタカナ", 9),
    ],
)
def test_words_in_any_script(text: str, words: int) -> None:
    assert len(Words.of(prompt_of(PromptParts(contexts=(text, "x")))).word) == words + 1


def test_case_does_not_tell_words_apart() -> None:
    words = Words.of(prompt_of(PromptParts(contexts=("Straße STRASSE straße",))))
    assert words.vocabulary == 1


def test_every_word_and_unit_has_its_sentence_and_part() -> None:
    prompt = prompt_of(PARTS)
    words = Words.of(prompt)
    assert len(words.sentence_of) == len(words.part_of) == len(prompt.forced())
    np.testing.assert_array_equal(words.part, words.part_of[words.unit])
    counts = words.by_sentence()
    assert counts.size == len(set(words.sentence)) == 2 + 2 + 3 + 1
    assert counts.times.sum() == len(words.word)
    np.testing.assert_array_equal(counts.word[counts.entry], words.word)


def test_nothing_to_count_is_no_error() -> None:
    prompt = prompt_of(PromptParts(contexts=("... !!! ---", "..."), question="?"))
    words = Words.of(prompt)
    assert (unit_weights(words) == 0).all()
    empty = Counts.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 3, 0)
    assert bm25(empty, np.zeros(0), 1.2, 0.75).tolist() == [0, 0, 0] == likeness(empty, np.zeros(0)).tolist()
    assert tf_idf(empty).tolist() == []
