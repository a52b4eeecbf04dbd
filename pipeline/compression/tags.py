"""``<llmlingua, rate=0.3, compress=True>...</llmlingua>`` around passages that have a rate of their own, or stay.

Anything may stand between the tags: "<", code, XML, other such tags. The innermost tag decides, and what it does not
say is as if there were none (``compress=True``, the prompt's rate). Only ``<llmlingua`` before a comma, white space or
">" is a tag, and ``</llmlingua`` likewise; a tag that is not written right is an error, for its text would otherwise go
to the target model. Texts about such tags need ``structure = "none"``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pipeline.compression.marked import Marked, Own, UnmarkableError, place_of, spans_of

_TAG = re.compile(r"<(?P<close>/?)llmlingua(?![^\s,>/])")
_ATTRIBUTE = re.compile(r"\s*,\s*(?P<name>\w+)\s*=\s*(?P<value>[^\s,]+)")
_SYNTAX = "write <llmlingua, rate=0.5> or <llmlingua, compress=False> and close it by </llmlingua>"


@dataclass(frozen=True, slots=True)
class _Tag:
    """``rate`` of what stands in it: 1 stays verbatim, None is the prompt's. ``at``: where it begins."""

    at: int
    number: int
    rate: float | None


def untagged(source: str) -> Marked:
    """``source`` without its tags, and what they say. Raises ``UnmarkableError``."""
    texts: list[str] = []
    markup: list[tuple[int, int]] = []
    rates: list[Own] = []
    opened: list[_Tag] = []
    done = length = number = 0
    for found in [*_TAG.finditer(source), None]:
        if found and found.start() < done:
            continue
        texts.append(source[done : found.start() if found else len(source)])
        if opened and (rate := opened[-1].rate) is not None and texts[-1]:
            rates.append(Own(length, length + len(texts[-1]), rate, opened[-1].number))
        length += len(texts[-1])
        if found:
            done = _end(source, found)
            markup.append((length, done - found.start()))
            number += 1
            if not found["close"]:
                opened.append(_Tag(found.start(), number, _rate(source, found, done)))
            elif opened:
                opened.pop()
            else:
                raise _wrong(source, found.start(), "closes a tag that is not open")
    if opened:
        raise _wrong(source, opened[-1].at, "is never closed")
    verbatim = spans_of((one.begin, one.end) for one in rates if one.rate == 1)
    places = np.array(markup, dtype=np.int64).reshape(-1, 2)
    return Marked("".join(texts), protected=verbatim, rates=tuple(rates), markup=places)


def _end(source: str, found: re.Match[str]) -> int:
    """Where the tag that begins at ``found`` ends."""
    end = source.find(">", found.end())
    if end < 0 or "<" in source[found.end() : end] or (found["close"] and source[found.end() : end].strip()):
        raise _wrong(source, found.start(), "is not written right")
    return end + 1


def _rate(source: str, found: re.Match[str], end: int) -> float | None:
    said = source[found.end() : end - 1]
    given: dict[str, str] = {}
    at = 0
    while attribute := _ATTRIBUTE.match(said, at):
        if attribute["name"] in given:
            raise _wrong(source, found.start(), f"says {attribute['name']} twice")
        given[attribute["name"]], at = attribute["value"], attribute.end()
    if said[at:].strip() or given.keys() - {"rate", "compress"}:
        raise _wrong(source, found.start(), "is not written right")
    rate = _number(given["rate"]) if "rate" in given else None
    if "rate" in given and (rate is None or not 0 < rate <= 1):
        raise _wrong(source, found.start(), "has a rate that is no number above 0 and at most 1")
    compress = given.get("compress", "True").lower()
    if compress not in ("true", "false"):
        raise _wrong(source, found.start(), "says something else than True or False for compress")
    return rate if compress == "true" else 1.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _wrong(source: str, at: int, what: str) -> UnmarkableError:
    return UnmarkableError("bad_tag", f"{place_of(source, at)}: a tag {what}; {_SYNTAX}")
