"""Sentences and phrases as units: whole, in any script, and cut where one would be endless."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from compress_models import save_tokenizer, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.compression.marked import Marked
from pipeline.compression.sentences import sentence_ends
from pipeline.compression.tokens import Tokenising
from pipeline.compression.units import MOST, cut
from schemas.compress import Unit

SMALL = Tokenising(tokenizer_of(500))


def sentences_of(text: str) -> list[str]:
    edges = sorted({0, *sentence_ends(text), len(text)})
    return [text[a:b].strip() for a, b in itertools.pairwise(edges)]


def units_of(text: str, unit: Unit, tokenising: Tokenising = SMALL) -> list[str]:
    (one,) = cut([Marked(text)], [tokenising.tokenise([text])[0].spans], unit)
    return [text[a:b] for a, b in zip(one.places, [*one.places[1:], len(text)], strict=True)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith paid $3.50 to J. R. Jones, of the U.S. Army.", "He left."],
        ['She said "No!" and went.', "Why?", "(Nobody knows.)", "It is so!"],
        ["See fig. 3 and No. 5, e.g. this.", "It was 5 p.m. yesterday."],
        ["1. First item", "2. Second item", "3. Third"],
        ["This is wrapped\ntext, and goes on\nto the end.", "So it is."],
        ["A title", "And a text under it."],
        ["你好。", "今天天气很好！", "“是吗？”", "3.5公斤。"],
        ["هل تعلم؟", "نعم.", "شكرا"],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["So do I.", "You too..."],
        ["Yahoo! is a name, and so is etc. here."],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    joint = "\n" if sentences[0].startswith(("1.", "A title")) else "" if sentences[0][0] in "你" else " "
    assert sentences_of(joint.join(sentences)) == sentences


def test_a_blank_line_ends_a_sentence() -> None:
    assert sentences_of("no stop here\n\nand none here") == ["no stop here", "and none here"]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (
            "Sam bought 12 boxes, then sold 5 (of 30) because he had to.",
            ["Sam bought 12 boxes,", " then sold 5", " (of 30)", " because he had to."],
        ),
        ("one line\nanother line", ["one line", "\nanother line"]),
        ("你好，世界。再见", ["你好，", "世界。", "再见"]),
        ('He said "no" and left', ["He said", ' "no"', " and left"]),
    ],
)
def test_phrases(text: str, phrases: list[str]) -> None:
    assert units_of(text, "phrase") == phrases


def test_sentences_are_units_with_the_white_space_before_them() -> None:
    text = "One two three. Four five, six!\n\nSeven eight."
    assert units_of(text, "sentence") == ["One two three.", " Four five, six!", "\n\nSeven eight."]


def test_a_full_stop_and_line_breaks_in_one_token_end_a_sentence(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save_tokenizer(tmp_path_factory.mktemp("words"), "words")
    tokenising = Tokenising(AutoTokenizer.from_pretrained(folder))
    text = "the lazy dog.\n\nThe quick fox."
    assert any(text[a:b] == ".\n\n" for a, b in tokenising.tokenise([text])[0].spans.tolist())
    assert units_of(text, "sentence", tokenising) == ["the lazy dog.\n\n", "The quick fox."]


@pytest.mark.parametrize("unit", ["phrase", "sentence"])
@pytest.mark.parametrize("text", ["word " * 3000, "a" * 5000, "好" * 3000, "{'a': 1}" * 800, ", " * 3000])
def test_no_unit_is_endless(text: str, unit: Unit) -> None:
    tokens = SMALL.tokenise([text])[0]
    (one,) = cut([Marked(text)], [tokens.spans], unit)
    assert np.diff([*one.first, len(tokens.ids)]).max() <= MOST[unit]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=4), st.sampled_from(["token", "phrase", "sentence"])
)
def test_units_cover_any_text_and_do_not_depend_on_what_comes_along(texts: list[str], unit: Unit) -> None:
    spans = [SMALL.tokenise([text])[0].spans for text in texts]
    for text, one, span in zip(texts, cut(list(map(Marked, texts)), spans, unit), spans, strict=True):
        (alone,) = cut([Marked(text)], [span], unit)
        assert one.places.tolist() == alone.places.tolist()
        assert one.places[0] == 0
        assert (np.diff([*one.places, len(text)]) > 0).all()


@pytest.mark.parametrize("text", [".", ". ", "\n", " ", " \n", '!"', "Mr. ", "1. ", "a.\n"])
def test_sentences_take_linear_time(text: str) -> None:
    begun = time.process_time()
    list(sentence_ends(text * (300_000 // len(text))))
    assert time.process_time() - begun < 5
