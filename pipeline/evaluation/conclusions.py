"""Where a text concludes: the sentences behind what marks an answer, as places in it.

Places, not copies: a model that repeats itself marks thousands of answers without a full stop, and all their sentences
end where the text does. Whoever looks for something in each looks once where it is in the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property

_CONCLUDES = re.compile(
    r"(?<!whether )(?<!whether the )(?<!what )(?<!what the )(?<!if )(?<!if the )(?<!know the )(?<!find the )"
    r"answer\s*(?:is|are|was|would be)\b",
    re.IGNORECASE,
)
_HEADS = re.compile(r"answer\s*[:=]|####|\\boxed\{", re.IGNORECASE)
_ALONE = re.compile(r"\s*-?[\d.,]+\}?%?\.?(?:[ \t]+[^\W\d]+\.?)?\s*(?:\n|$)")
_LEAD = re.compile(r"[\s:]*")
_STOP = re.compile(r"\n|[.!?](?=\s|$)")

SHORTEST = 4
"""Characters of a marker, without spaces."""

Span = tuple[int, int]
"""From where to where."""


class Conclusions:
    """Of a ``text``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._said = [one.span() for one in _CONCLUDES.finditer(text)]
        self._heads = [one.span() for one in _HEADS.finditer(text)]

    def __iter__(self) -> Iterator[Span]:
        """The sentence behind each marker, where there is one, without white space around it; likeliest answers first.

        A conclusion before a heading, unless nothing but a number stands under one that comes first.
        """
        first = self._said[0][0] if self._said else len(self._text)
        before = (head for head in self._heads if head[0] < first)
        bare = next((head for head in before if _ALONE.match(self._text, head[1])), None)
        ends: dict[int, int] = {}
        for _, end in (*([bare] if bare else []), *self._said, *reversed(self._heads)):
            begin = lead.end() if (lead := _LEAD.match(self._text, end)) else end
            number = bisect_left(self._stops, begin)
            stop = self._stops[number] if number < len(self._stops) else len(self._text)
            if begin < stop:
                if stop not in ends:
                    ends[stop] = len(self._text[begin:stop].rstrip()) + begin
                yield begin, ends[stop]

    def markers(self, span: Span) -> int:
        """How many begin in a span."""
        return within(self._begins, span)

    @cached_property
    def _stops(self) -> list[int]:
        return places(_STOP, self._text)

    @cached_property
    def _begins(self) -> list[int]:
        return sorted(begin for begin, _ in (*self._said, *self._heads))


def places(what: re.Pattern[str], text: str) -> list[int]:
    """Where each begins, in order."""
    return [one.start() for one in what.finditer(text)]


def within(where: Sequence[int], span: Span) -> int:
    """How many of these places are in a span."""
    return bisect_left(where, span[1]) - bisect_left(where, span[0])
