"""What ``keep`` protects: words, numbers, names as code writes them, and what regular expressions match."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import regex  # type: ignore[import-untyped]

from pipeline.compression.marked import NO_SPANS, Ints, UnmarkableError, spans_of
from schemas.compress import Keep

SECONDS, SECONDS_PER_CHARACTER = 10.0, 1e-5
"""What one pattern may take on one text. Some patterns take for ever on some texts: then the document is refused."""

# By regex throughout: re of Python 3.11.2 goes on at the wrong place behind a group that takes all it can, like (ab)*+.
_NUMBER = regex.compile(
    r"(?:(?<![\w)\]])[-+]?+\.?+)?+"  # a sign or a leading point, but not the minus of 5-3
    r"\d++(?:[.,:/]\d++)*+(?:[eE][-+]?\d++)?+%?"
)

_NAME = r"[^\W\d]\w*+"
_IDENTIFIERS = (
    regex.compile(rf"(?<![\w.]){_NAME}(?:\.{_NAME})*+\([^()\n]{{0,80}}+\)"),  # f(x), a.b(c)
    regex.compile(rf"(?<![\w.]){_NAME}(?:\.{_NAME})++"),  # a.b
    regex.compile(r"\b(?=[^\W_]*+_)(?=_*+[^\W_])\w++"),  # snake_case, CONSTANT_CASE, __init__
    regex.compile(r"\b(?:[a-z][a-z0-9]*+|[A-Z][a-z0-9]++)[A-Z]\w*+"),  # camelCase, PascalCase
    regex.compile(r"\b[A-Z]{2,}+[a-z]\w*+"),  # HTTPServer
)


@dataclass(frozen=True, slots=True)
class Protection:
    """``Keep``, made ready: its patterns are compiled once."""

    words: tuple[str, ...]
    fixed: tuple[regex.Pattern[str], ...]
    patterns: tuple[regex.Pattern[str], ...]

    @classmethod
    def of(cls, keep: Keep) -> Protection:
        """What protects as ``keep`` says."""
        fixed = [_NUMBER] * keep.digits + list(_IDENTIFIERS) * keep.identifiers
        return cls(keep.words, tuple(fixed), tuple(regex.compile(one) for one in keep.patterns))

    @property
    def active(self) -> bool:
        """Whether it protects anything."""
        return bool(self.words or self.fixed or self.patterns)

    def spans(self, text: str) -> Ints:
        """Characters ``[n, 2]`` of ``text`` that must stay: sorted, disjoint. Raises ``UnmarkableError``."""
        if not self.active:
            return NO_SPANS
        return spans_of(self._found(text))

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        for word in self.words:
            at = text.find(word)
            while at >= 0:
                yield at, at + len(word)
                at = text.find(word, at + 1)  # what overlaps itself stands there twice
        for pattern in self.fixed:
            yield from (one.span() for one in pattern.finditer(text))
        for number, own in enumerate(self.patterns):
            try:
                yield from (one.span() for one in own.finditer(text, timeout=_allowed(text)))
            except TimeoutError:
                raise UnmarkableError(
                    "pattern_too_slow",
                    f"keep.patterns[{number}] took more than {_allowed(text):.0f} s: nested repetition like (a+)+ "
                    "takes for ever on some texts; write it without",
                ) from None


def _allowed(text: str) -> float:
    return SECONDS + SECONDS_PER_CHARACTER * len(text)
