"""Units: the spans of a text that are kept or removed whole. Words with their leading white space, mostly.

A unit is a run of whole tokens. Removing one never splits a character, a word or a number, and never glues the
neighbours together, because what sets a word or a number apart leads it:

- white space belongs to the word after it; punctuation before or inside a word belongs to the word (``$12*3=36``);
- punctuation after a word is a unit of its own, as is punctuation between white space;
- in scripts without spaces, and among emoji, every token is a unit; marks and joined emoji stay with their base, a
  word or a number in other letters with the token before it: 12元34角 is 12, 元34, 角, and never becomes 1234角. A run
  of Han numerals is one number;
- a unit longer than ``MAX_TOKENS`` is cut before its inner punctuation, but not in a word or a number
  (``80,000+50,000`` is cut before its plus alone). One longer than ``LONGEST`` is cut between tokens at a character's
  edge: otherwise a megabyte without a space would be all or nothing. None exceeds that unless a single character, or
  an escape of JSON, does.

Phrases (words up to punctuation, a line break or a conjunction) and sentences are runs of such words; where they exceed
``MOST`` tokens they are cut into the next smaller kind. ``token``: whatever whole characters a token holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.characters import (
    JOINING,
    PUNCT,
    SPACE,
    WORD,
    ZERO_WIDTH_JOINER,
    decimals,
    kinds_of,
    last_kept,
    points_of,
)
from pipeline.compression.edges import next_solid, phrase_edges, sentence_edges, word_edges
from pipeline.compression.marked import NO_SPANS, Marked, within
from pipeline.compression.widths import parted
from schemas.compress import Unit

MAX_TOKENS = 16
LONGEST = 4 * MAX_TOKENS
"""Tokens of the longest word or number that is never split: a hash in hexadecimal digits, or any word of a language."""

_IN_NUMBERS = points_of(".,:/'\u2019\u066b\u066c")
"""Punctuation that parts no number where digits stand on both its sides."""

_NUMERALS = points_of("〇零一二三四五六七八九十百千万萬亿億兆两兩廿卅壹贰貳叁參肆伍陆陸柒捌玖拾佰仟")

MOST = {"phrase": 2 * MAX_TOKENS, "sentence": 16 * MAX_TOKENS}

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Cut:
    """A text's units: the ``first`` token of each, how many it has (``counts``), its first character (``places``).

    ``forced``: which must stay. ``rates``, ``regions``: of the span with a rate of its own that a unit's first word is
    in; nan and -1: in none.
    """

    first: Ints
    counts: Ints
    places: Ints
    forced: Bools
    rates: Floats
    regions: Ints


@dataclass(frozen=True, slots=True)
class _Line:
    """All texts, a space between them, and their tokens, end to end: array work once instead of once per text.

    ``kinds``, ``points``: of each character. ``starts``, ``ends``: the characters of each token; ``heads``: the first
    token of each text; ``inside``: may begin a unit, were it only for the character's edge; ``held``: must stay;
    ``kept``: must stay with its word; ``owned``: the number, through all texts, of the span with a rate of its own that
    it is in; -1: in none.
    """

    text: str
    kinds: NDArray[np.uint8]
    points: NDArray[np.uint32]
    starts: Places
    ends: Places
    heads: Ints
    inside: Bools
    held: Bools
    kept: Bools
    owned: Ints


def cut(parts: Sequence[Marked], spans: Sequence[Places], unit: Unit = "word") -> list[Cut]:
    """Cut parts (none empty, each with tokens) into units; token i of part t is characters ``spans[t][i]`` (from, to).

    Units cover text and tokens without a gap: characters that no token names (trimmed white space) belong to the token
    after them. Those that hold anything protected are forced, and so is the white space before it.
    """
    if not parts:
        return []
    sizes = np.array([len(one) for one in spans])
    heads = np.cumsum(sizes) - sizes
    offsets = np.cumsum([0, *(len(part.text) + 1 for part in parts[:-1])], dtype=np.int32)
    shift = np.repeat(offsets, sizes)
    flat = np.concatenate(spans) + shift[:, None]
    ends = np.maximum.accumulate(flat[:, 1])
    starts = np.roll(ends, 1)
    starts[heads] = offsets
    line = _line(parts, offsets, starts, ends, heads, flat[:, 0] >= starts)
    begins, held = _begins(line, unit)
    first = np.flatnonzero(begins)
    counts = np.diff(np.searchsorted(first, heads), append=len(first))
    owns = [own for part in parts for own in part.rates]
    owned = line.owned[first]
    columns = (
        first - np.repeat(heads, counts),
        np.diff(first, append=len(begins)),
        (starts[first] - np.repeat(offsets, counts)).astype(np.int64),
        np.logical_or.reduceat(held, first),
        np.array([*(own.rate for own in owns), np.nan])[owned],  # -1 is the last
        np.array([*(own.region for own in owns), -1])[owned],
    )
    return [Cut(*one) for one in zip(*(parted(column, counts) for column in columns), strict=True)]


def _line(parts: Sequence[Marked], offsets: Places, starts: Places, ends: Places, heads: Ints, apart: Bools) -> _Line:
    """``apart``: shares no character with a token before it."""
    text = " ".join(part.text if part.reading is None else part.reading for part in parts)
    kinds, points = kinds_of(text)
    inside = (starts > 0) & (starts < len(text)) & (ends > starts) & apart
    atoms = _shifted([part.atoms for part in parts], offsets)
    inside &= ~_touching(starts, starts + 1, np.stack([atoms[:, 0] + 1, atoms[:, 1]], 1))
    held = _touching(starts, ends, _shifted([part.protected for part in parts], offsets))
    kept = _touching(starts, ends, _shifted([part.kept for part in parts], offsets))
    owned = np.full(len(starts), -1)
    if any(part.rates for part in parts) or held.any():
        solid = next_solid(kinds)[np.minimum(starts, len(text) - 1)]
        own = [np.array([(one.begin, one.end) for one in part.rates], np.int64).reshape(-1, 2) for part in parts]
        last = np.repeat(offsets + [len(part.text) - 1 for part in parts], np.diff(np.append(heads, len(starts))))
        owned = within(np.minimum(solid, last), _shifted(own, offsets))  # white space goes with its word
        # Without the white space before it a number would run into the one before.
        blank = (solid >= ends) & (solid <= last)
        held = held | (blank & (last_kept(held[::-1].view(np.int8), ~blank[::-1])[::-1] > 0))
        held = held | _leading(held, kinds, starts)
    return _Line(text, kinds, points, starts, ends, heads, inside, held, kept, owned)


def _shifted(spans: Sequence[Ints], offsets: Places) -> Ints:
    return np.concatenate([NO_SPANS, *(one + at for one, at in zip(spans, offsets, strict=True) if len(one))])


def _touching(starts: Places, ends: Places, spans: Ints) -> Bools:
    """Which tokens share a character with one of ``spans`` (sorted, disjoint)."""
    if not len(spans):
        return np.zeros(len(starts), dtype=bool)
    after = np.minimum(np.searchsorted(spans[:, 1], starts, side="right"), len(spans) - 1)
    touching: Bools = (spans[after, 0] < ends) & (spans[after, 1] > starts)
    return touching


def _leading(held: Bools, kinds: NDArray[np.uint8], starts: Places) -> Bools:
    """Tokens that set what is held apart from a word or number before it: the bracket of (12, the 元 of 元34."""
    places = np.minimum(starts, len(kinds) - 1)
    before = last_kept(kinds, kinds != JOINING)[places - 1]
    led = held & (kinds[places] == WORD) & (before != WORD) & (before != SPACE)
    return np.append(led[1:], False)


def _begins(line: _Line, unit: Unit) -> tuple[Bools, Bools]:
    """Which tokens begin a unit, and which must stay."""
    starts, kinds = line.starts, line.kinds
    places = np.minimum(starts, len(kinds) - 1)
    safe = line.inside & (kinds[places] != JOINING) & (line.points[places - 1] != ZERO_WIDTH_JOINER)
    # Around what must stay, too: else a quotation mark of JSON would hold the word beside it. But never in a word.
    whole = (kinds[places - 1] != SPACE) & (kinds[places] == WORD) & ~np.append(False, line.held[:-1])
    whole |= (kinds[places - 1] == WORD) & (kinds[places] == WORD)
    around = safe & (_changes(line.held) | _changes(line.owned)) & ~whole
    around[line.heads] = True
    edges = word_edges(kinds) & ~_in_numerals(line.points)
    words = _either(safe & edges[places], around)
    if len(long := np.flatnonzero(_overlong(words))):
        words[long] = _shortened(line, words[long], safe[long], line.inside[long], places[long])
    held = line.held
    if line.kept.any():
        first = np.flatnonzero(words)
        kept = np.logical_or.reduceat(line.kept, first)
        held = held | np.repeat(kept, np.diff(np.append(first, len(words))))
    around |= words & _changes(held)
    if unit == "token":
        begins = _either(safe, around)
        return begins | (_every(begins, line.inside | begins) & _overlong(begins, 2 * MAX_TOKENS)), held
    return (words if unit == "word" else _long_units(line, unit, words, edges, safe, around)), held


def _shortened(line: _Line, words: Bools, safe: Bools, inside: Bools, places: Places) -> Bools:
    """Beginnings for the tokens (at ``places``) of units that are too long: between words and numbers; in these where
    need be."""
    before, here = last_kept(line.kinds, line.kinds != JOINING)[places - 1], line.kinds[places]
    inner = safe & (before == WORD) & (here == PUNCT)
    between = safe & (here != WORD) & ~_in_numbers(line.points, safe, places)
    begins = words | (inner & between)
    begins |= _every(begins, between | begins) & _overlong(begins)
    begins |= _overlong(begins, LONGEST) & inner
    begins |= _every(begins, safe | begins) & _overlong(begins, LONGEST)
    return _either(begins, _every(begins, inside | begins) & _overlong(begins, LONGEST))


def _in_numerals(points: NDArray[np.uint32]) -> Bools:
    """Which characters are a Han numeral behind another one."""
    numerals: Bools = np.isin(points, _NUMERALS)
    behind: Bools = numerals & np.append(False, numerals[:-1])
    return behind


def _in_numbers(points: NDArray[np.uint32], asked: Bools, places: Places) -> Bools:
    """Which of the tokens ``asked`` for begin beside punctuation that is in a number: 3,000.50, 10:30, 3/4."""
    found = np.zeros(len(asked), dtype=bool)
    some = np.flatnonzero(asked)
    for shift in (1, 0):  # before it, and there
        marked = some[np.isin(points[places[some] - shift], _IN_NUMBERS)]
        mark = places[marked] - shift
        around = np.clip([mark - 1, mark + 1], 0, len(points) - 1)
        found[marked] |= decimals(points[around]).all(axis=0)
    return found


def _long_units(line: _Line, unit: Unit, words: Bools, edges: Bools, safe: Bools, around: Bools) -> Bools:
    """Which tokens begin a phrase or a sentence; ``edges``: characters that begin words, ``around``: any unit."""
    solid = next_solid(line.kinds)
    phrases = _at_tokens(phrase_edges(line.text, line.points, edges, solid), line, safe, solid) | around
    if unit == "phrase":
        return _either(phrases, words & _overlong(phrases, MOST["phrase"]))
    begins = _at_tokens(sentence_edges(line.text), line, safe, solid) | around
    begins |= phrases & _overlong(begins, MOST["sentence"])
    return _either(begins, words & _overlong(begins, MOST["sentence"]))


def _changes(values: NDArray[Any]) -> Bools:
    """Where a value differs from the one before."""
    return np.append(False, values[1:] != values[:-1])


def _either(one: Bools, other: Bools) -> Bools:
    found: Bools = one | other
    return found


def _at_tokens(edges: Bools, line: _Line, safe: Bools, solid: Ints) -> Bools:
    """Edges of characters -> the tokens that begin there, or before the white space there ends.

    Some tokenizers put a full stop and the line break after it into one token.
    """
    wanted, some = np.flatnonzero(edges), np.flatnonzero(safe)
    starts = np.append(line.starts[some], len(edges) + 1)
    found = np.searchsorted(starts, wanted)
    begins = np.zeros(len(safe), dtype=bool)
    begins[some[found[starts[found] <= solid[wanted]]]] = True
    return begins


def _overlong(begins: Bools, limit: int = MAX_TOKENS) -> Bools:
    """Which tokens lie in a unit of more than ``limit`` tokens."""
    first = np.flatnonzero(begins)
    lengths = np.diff(np.append(first, len(begins)))
    return np.repeat(lengths > limit, lengths)


def _every(begins: Bools, allowed: Bools) -> Bools:
    """Every ``MAX_TOKENS``-th token of each unit, moved on to the next one at a character's edge."""
    index = np.arange(len(begins))
    wanted = (index - last_kept(index, begins)) % MAX_TOKENS == 0
    # A wanted place inside a character passes its wish on to the first allowed place after it.
    group = np.cumsum(wanted)
    fresh = np.flatnonzero(allowed)
    chosen = np.zeros(len(begins), dtype=bool)
    chosen[fresh[np.diff(group[fresh], prepend=-1) != 0]] = True
    return chosen
