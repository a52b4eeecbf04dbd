"""The frame of demonstrations: what most of them have in common at the beginnings of their lines.

"Question:", "Let's think step by step.", "The answer is 20.": whoever has read one demonstration can guess this of the
next, so what goes by surprisal removes it first. Yet it is what tells a target model in which form to answer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import UNSPACED_CLASS, kinds_of
from pipeline.compression.edges import next_solid
from pipeline.compression.marked import Ints, spans_of, within
from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.sentences import sentence_ends

Bools = NDArray[np.bool_]

_WORD = re.compile(rf"[^\S\n]*([{UNSPACED_CLASS}]|[^\s{UNSPACED_CLASS}]+)")
"""A word of a line with the white space before it (the \\r of CRLF is some); without spaces, a single character."""

_LINE = re.compile(r"^(?=[^\S\n]*\S)", re.MULTILINE)
"""Where a line begins that is not blank."""

_COLONS = (":", "：")


def frame_of(prompt: Prompt) -> Bools:
    """Which units of all parts are of the frame of the prompt's contexts: those whose first character is."""
    places = prompt.places("context")
    spans = dict(zip(places, frames([prompt.parts[place].text for place in places]), strict=True))
    return np.concatenate([_units(part, spans.get(place)) for place, part in enumerate(prompt.parts)])


def frames(texts: Sequence[str]) -> list[Ints]:
    """The characters ``[n, 2]`` (from, to; sorted, disjoint) of each text that are of the frame of all the texts.

    Of a line it is the longest beginning, in words, with which a line of more than half of the texts begins too: two
    words or more, or one with a colon behind it. Where no more words follow than these, it is the whole line. The last
    sentence of a text is a line of its own. Equal texts count once, so that no text is the frame of itself.
    """
    distinct = list(dict.fromkeys(texts))
    found: list[list[tuple[int, int]]] = [[] for _ in distinct]
    for (number, begin), (end, words) in _shared(distinct).items():
        found[number].append((begin, _reach(distinct[number], end, words)))
    spans = dict(zip(distinct, map(spans_of, found), strict=True))
    return [spans[text] for text in texts]


_Line = tuple[int, int, int]
"""The number of its text, where it begins, and where the words end that were read of it."""


def _shared(texts: Sequence[str]) -> dict[tuple[int, int], tuple[int, int]]:
    """Number of the text and beginning of a line -> where its shared beginning ends, and the words of that.

    All lines are read a word at a time, and only those on that share what was read: what is read is little more than
    what is shared.
    """
    found: dict[tuple[int, int], tuple[int, int]] = {}
    alike: list[Iterable[_Line]] = [((n, begin, begin) for n, text in enumerate(texts) for begin in _lines(text))]
    words = 0
    while alike and len(texts) > 1:
        words += 1
        read = [one for lines in alike for one in _by_next_word(texts, lines).items()]
        read = [(word, lines) for word, lines in read if 2 * len({line[0] for line in lines}) > len(texts)]
        for word, lines in read:
            if words > 1 or word.endswith(_COLONS):
                found.update(((number, begin), (end, words)) for number, begin, end in lines)
        alike = [lines for _, lines in read]
    return found


def _lines(text: str) -> list[int]:
    """Where lines begin, and the last sentence: a demonstration ends with its answer, at times behind the reasoning."""
    begins = [line.start() for line in _LINE.finditer(text)]
    if not begins:
        return []
    last = text[begins[-1] :].rstrip()
    sentences = [begins[-1] + end for end in sentence_ends(last) if end < len(last)]
    return begins + sentences[-1:]


def _by_next_word(texts: Sequence[str], lines: Iterable[_Line]) -> dict[str, list[_Line]]:
    """The lines that go on, by the word with which they do, each read up to its end."""
    found: dict[str, list[_Line]] = defaultdict(list)
    for number, begin, end in lines:
        if word := _WORD.match(texts[number], end):
            found[word[1]].append((number, begin, word.end()))
    return found


def _reach(text: str, end: int, words: int) -> int:
    """Where the frame of a line ends of which so many words, up to ``end``, are shared."""
    after = text.find("\n", end) + 1 or len(text)
    more = sum(1 for _ in islice(_WORD.finditer(text, end, after), words + 1))
    return after if more <= words else end


def _units(part: Part, spans: Ints | None) -> Bools:
    if spans is None or not len(spans):
        return np.zeros(len(part.places), dtype=bool)
    solid = next_solid(kinds_of(part.text)[0])[part.places]
    blank = solid >= np.append(part.places[1:], len(part.text))
    inside: Bools = within(np.where(blank, part.places, solid), spans) >= 0
    return inside
