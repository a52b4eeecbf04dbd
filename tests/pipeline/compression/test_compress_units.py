"""Units cover the text, and no cut goes through a character, a word or a number."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import regex  # type: ignore[import-untyped]
from compress_models import tokenizer_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.compression import tokens as tokens_module
from pipeline.compression.characters import last_kept
from pipeline.compression.marked import Marked
from pipeline.compression.protect import Protection
from pipeline.compression.tags import untagged
from pipeline.compression.tokens import PIECE, Tokenising
from pipeline.compression.units import LONGEST, MAX_TOKENS, cut
from schemas.compress import Keep

SMALL = Tokenising(tokenizer_of(500))
DECOMPOSED = "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 \u1100\u1173\u11af"
"""Korean, letter by letter."""


def units_of(text: str) -> list[str]:
    (one,) = cut([Marked(text)], [SMALL.tokenise([text])[0].spans])
    assert len(one.first) == len(one.places) and not one.forced.any()
    return [text[a:b] for a, b in zip(one.places, [*one.places[1:], len(text)], strict=True)]


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans())))
def test_the_last_wanted_value_is_carried_into_gaps(line: list[tuple[int, bool]]) -> None:
    values, wanted = np.array([value for value, _ in line], np.uint8), np.array([want for _, want in line], bool)
    last, expected = 0, []
    for value, want in line:
        last = value if want else last
        expected.append(last)
    found = last_kept(values, wanted)
    assert found.dtype == np.uint8 and found.tolist() == expected


def test_what_a_text_is_cut_into_does_not_depend_on_its_neighbours() -> None:
    """Units too long are looked at by themselves, all of a batch together."""
    texts = ["a" * 300 + " b", "80,000+50,000*" * 20, "plain words", "\u0301\u0301 x", "0x" + "9f" * 90]
    spans = [SMALL.tokenise([text])[0].spans for text in texts]
    together = cut([Marked(text) for text in texts], spans)
    for text, own, one in zip(texts, spans, together, strict=True):
        (alone,) = cut([Marked(text)], [own])
        assert one.places.tolist() == alone.places.tolist() and one.counts.tolist() == alone.counts.tolist()
        assert one.counts.sum() == len(own)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Sam paid $3*12=$36 (that's 3,000).", ["Sam", " paid", " $3*12=$36", " (that's", " 3,000", ")."]),
        ("one\n\nTwo  three ", ["one", "\n\nTwo", "  three", " "]),
        ("你好，世界", ["你", "好", "，", "世", "界"]),
        ("👨‍👩‍👧‍👦🇩🇪🇫🇷 ok 👍🏽", ["👨‍👩‍👧‍👦", "🇩🇪🇫🇷", " ok", " 👍🏽"]),
        ("नमस्ते दुनिया", ["नमस्ते", " दुनिया"]),
        ("   ", ["   "]),
        ("a = b", ["a", " =", " b"]),
        ("กำลังทำน้ำ", ["กำ", "ลั", "ง", "ทำ", "น้ำ"]),
        (DECOMPOSED, [DECOMPOSED[:8], DECOMPOSED[8:]]),
    ],
)
def test_units_are_words(text: str, units: list[str]) -> None:
    assert units_of(text) == units


ENDLESS = ["a" * 5000, "e" + "\u0301" * 300, "{" * 300, "1" * 300, "\u200d" * 300, "🇩🇪" * 90]
LONG = ["1" * 65, "x" * 40 + "-" * 40, "e\u0301" * 60, "1.000," * 30]


@pytest.mark.parametrize(
    ("text", "most"), [(text, 2 * MAX_TOKENS) for text in ENDLESS] + [(text, LONGEST) for text in LONG]
)
def test_no_unit_is_endless(text: str, most: int) -> None:
    tokens = SMALL.tokenise([text])[0]
    (one,) = cut([Marked(text)], [tokens.spans])
    assert np.diff([*one.first, len(tokens.ids)]).max() <= most


def test_long_code_is_cut_before_its_punctuation() -> None:
    text = '{"a":1,"bc":[1,2,3],"ccc":{"d":"e","f":[4,5]},"g":"h","i":"j"}'
    units = units_of(text)
    assert len(units) > 5
    assert not any(unit[0].isalnum() for unit in units[1:])


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_units_cover_any_text(text: str) -> None:
    units = units_of(text)
    assert "".join(units) == text
    assert all(units)


@settings(max_examples=100, deadline=None)
@example(["0", "\U000e0020\r"])  # a mark that joins nothing, at the start of the second
@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=5))
def test_texts_are_cut_together_as_they_are_alone(texts: list[str]) -> None:
    spans = [SMALL.tokenise([text])[0].spans for text in texts]
    for text, one, span in zip(texts, cut(list(map(Marked, texts)), spans), spans, strict=True):
        (alone,) = cut([Marked(text)], [span])
        assert one.first.tolist() == alone.first.tolist()
        assert one.places.tolist() == alone.places.tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.from_regex(r"[A-Za-z]{1,12}|[0-9]{1,12}", fullmatch=True), min_size=1, max_size=30))
def test_words_and_numbers_stay_whole(words: list[str]) -> None:
    assert [unit.strip() for unit in units_of(" ".join(words))] == words


@pytest.mark.parametrize(
    "word",
    [
        "98765432109876543210", "3.14159265358979323846", "1,234,567,890,123,456.78", "DE89370400440532013000",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "განმანათლებლებისთვის",
        "பல்கலைக்கழகங்களுக்கு", "وَبِالِاسْتِقْلَالِيَّةِ", "٣٫١٤١٥٩٢٦٥٣٥٨٩٧٩",
    ],
)  # fmt: skip
def test_long_words_and_numbers_stay_whole_too(word: str) -> None:
    """However many tokens the scorer makes of them, up to ``LONGEST``."""
    assert MAX_TOKENS < len(SMALL.tokenise([word])[0].ids) <= LONGEST
    assert units_of(f"it is {word} here") == ["it", " is", f" {word}", " here"]


def test_a_long_sum_is_cut_between_its_numbers() -> None:
    units = units_of("that is 80,000+50,000=$130,000>>130,000.50 per 8-hour")
    assert units[2:-2] == [" 80,000", "+50,000", "=$130,000", ">>130,000.50"]


APART = [
    "12",
    "word",
    "é",
    "元",
    "年",
    "ね",
    "บ",
    "👍🏽",
    "🇩🇪",
    "©",
    ".",
    "，",
    "(",
    '"',
    " ",
    "\n",
    "+",
    "3,000",
    "१२",
]
RUN = regex.compile(r"[\p{Latin}\p{Nd}]")


@pytest.mark.parametrize("keep", [Keep(), Keep(digits=True), Keep(words=("word",))], ids=["nothing", "digits", "word"])
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(APART), min_size=1, max_size=40))
def test_no_two_words_or_numbers_run_into_one(keep: Keep, pieces: list[str]) -> None:
    """Whatever goes from between them."""
    text = "".join(pieces)
    marked = Marked(text, kept=Protection.of(keep).spans(text))
    (one,) = cut([marked], [SMALL.tokenise([text])[0].spans])
    units = [text[a:b] for a, b in pairwise([*one.places.tolist(), len(text)])]
    for left, right in combinations(range(len(units)), 2):
        if right > left + 1 and not one.forced[left + 1 : right].any():
            assert not (RUN.search(units[left][-1]) and RUN.match(units[right])), units


def test_a_passage_with_a_rate_of_its_own_runs_into_no_number_before_it() -> None:
    for rate in (0.5, 1.0):
        marked = untagged(f"12元<llmlingua, rate={rate}>34元</llmlingua>56")
        (one,) = cut([marked], [SMALL.tokenise([marked.text])[0].spans])
        begins = [marked.text[place] for place in one.places[1:]]
        assert not any(char.isdigit() for char, before in zip(begins, one.forced, strict=False) if not before)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("12元34角", ["12", "元34", "角"]),
        ("用Python和Java", ["用Python", "和Java"]),
        ("3👍4🇩🇪5", ["3", "👍4", "🇩🇪5"]),
        ("25°C", ["25", "°C"]),
        ("二〇二四年三月", ["二〇二四", "年", "三", "月"]),
    ],
)
def test_what_sets_words_and_numbers_apart_goes_with_them(text: str, units: list[str]) -> None:
    assert units_of(text) == units


def test_a_long_text_is_tokenised_in_pieces_at_their_places() -> None:
    text = "the lazy dog runs " * (PIECE // 9)
    tokens = SMALL.tokenise(["short", text])[1]
    assert len(text) > 2 * PIECE - 18
    names = [text[a:b] for a, b in tokens.spans.tolist()]
    assert "".join(names) == text
    assert len(tokens.ids) == pytest.approx(SMALL.count([text])[0], abs=3)


def test_counts_come_in_order_of_the_texts() -> None:
    texts = ["a", "", "the lazy dog" * PIECE, "b c"]
    assert SMALL.count(texts) == [SMALL.count([text])[0] for text in texts]
    assert SMALL.count([""]) == [0]


SNIPPETS = ["lazy dog ", "word.\n\n", "x" * 30, "12*3", "  ", "你好，", "é", "\u0301", "<s>", '{"a":1,', "it's", "x-y"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(SNIPPETS), max_size=90))
def test_long_texts_are_counted_exactly_in_pieces(snippets: list[str]) -> None:
    text = "".join(snippets)
    whole = len(SMALL.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "PIECE", 12)
        assert SMALL.count([text]) == [whole]


@pytest.mark.parametrize("text", ["the lazy dog runs ", '{"name":"Ada","tags":["math"]},', "敏捷的狐狸，跳过了懒狗。"])
def test_a_long_text_is_never_counted_whole(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """With white space or without: the tokenizer's records of megabytes would fill the memory."""
    text *= 200
    whole = SMALL.count([text])
    monkeypatch.setattr(tokens_module, "PIECE", 64)
    longest: list[int] = []
    real = Tokenising._count_batch

    def watched(self: Tokenising, texts: list[str]) -> list[int]:
        longest.extend(map(len, texts))
        return real(self, texts)

    monkeypatch.setattr(Tokenising, "_count_batch", watched)
    assert SMALL.count([text]) == whole
    assert max(longest) <= 128


def test_padding_and_truncation_asked_for_elsewhere_change_no_count() -> None:
    texts = ["the lazy dog", "the lazy dog runs"]
    counts = SMALL.count(texts)
    SMALL.tokenizer(texts, padding="max_length", truncation=True, max_length=2)
    SMALL.tokenizer(texts, padding=True)
    assert SMALL.count(texts) == [len(one.ids) for one in SMALL.tokenise(texts)] == counts
