"""Places of tokens by their lengths, and counts of joined parts: what the tokenizer itself says of the whole text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from classifier_models import save_classifier
from compress_models import tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pipeline.compression.joints import Joints
from pipeline.compression.tokens import GROUP, PIECE, Tokenising, _by_offsets
from pipeline.compression.widths import widths_of
from pipeline.models import load_tokenizer
from schemas.document import SEPARATOR

SNIPPETS = [
    "The quick fox", " 12*30=360", "$3", "\n", " ", "\t", "\r\n", "\u00a0", "\u2028", "\x00", "\x1c", "Café", "e\u0301",
    "İ", "Σς", "東京", "한국", "½", "’", "—", "🇩🇪", "[SEP]", "[UNK]", "<s>", "<S>", "##s", "x" * 120, "it's", "?", "…",
    "ﬁ", "\u0f73",
]  # fmt: skip
TEXTS = st.lists(st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=12).map("".join), min_size=1, max_size=6)
KINDS = ("bert", "bytes, single digits", "bytes")


@pytest.fixture(scope="module", params=KINDS)
def tokenising(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenising:
    if request.param == "bert":
        return Tokenising(load_tokenizer(save_classifier(tmp_path_factory.mktemp("bert"))))
    made = tokenizer_of(500)
    if request.param == "bytes":
        inner: Any = made.backend_tokenizer
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenising(made)


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
def test_places_and_counts_are_the_tokenizers_own(tokenising: Tokenising, texts: list[str]) -> None:
    texts = [*texts, "Sam bought 12 boxes."]
    inner = tokenising.tokenizer.backend_tokenizer
    for one, other in zip(tokenising.tokenise(texts), _by_offsets(inner, texts), strict=True):
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.spans, other.spans)
    assert tokenising.count(texts) == [len(inner.encode(text, add_special_tokens=False)) for text in texts]
    widths = widths_of(inner)
    assert widths is not None and len(texts) - 1 in widths.tokenised(texts)  # plain text takes the fast way


def test_a_long_text_does_not_swallow_those_behind_it(tokenising: Tokenising) -> None:
    """One that is counted in pieces and yet leaves room for others beside it."""
    texts = ["one", "12 boxes " * (2 * PIECE // 9 + 1), "two", "three"]
    assert 2 * PIECE < len(texts[1]) < GROUP - 10
    assert tokenising.count(texts) == [tokenising.count([text])[0] for text in texts]


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
def test_joined_parts_count_what_they_count_together(tokenising: Tokenising, texts: list[str]) -> None:
    counts = tokenising.count(texts)
    found = tokenising.joined(texts, counts)
    assert found in (None, tokenising.count([SEPARATOR.join(texts)])[0])
    joints = Joints(tokenising.tokenizer.backend_tokenizer)
    assert found is not None or None in [joints.between(*pair) for pair in pairwise(texts)]


def test_plain_parts_are_not_counted_again(tokenising: Tokenising) -> None:
    texts = ["Solve it,\n", "Question: 5 boxes?\nAnswer: 5", "12 pens"]
    assert tokenising.joined(texts, tokenising.count(texts)) == tokenising.count([SEPARATOR.join(texts)])[0]
