"""A target model's answer, back in the original's words: LongLLMLingua's sub-sequence recovery (arXiv 2310.06839, 4.4).

The target has read the compressed prompt, so what it quotes lacks what was cut. Runs of its words that stand in the
compressed prompt are replaced by the stretch of the original they were cut from. The paper has to search for that
stretch; the map of what was kept (column ``kept``) says where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.layout import text_of
from pipeline.compression.runs import Runs, words_of

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Recovered:
    """Characters ``answer`` (from, to) of an answer stand for the characters ``original`` of the original."""

    answer: tuple[int, int]
    original: tuple[int, int]


def recover(original: str, kept: Sequence[int] | Ints, answer: str, reach: int | None = None) -> str:
    """``answer`` with every run of words that was found replaced by its stretch of ``original``.

    ``kept``: from, to, from, to, ... in characters of ``original``, as the column has them. ``reach``: most characters
    that were cut between two words of a run; None: any number. What is not found stays as it is. Time is about linear
    in both texts. Raises ``ValueError`` for spans that are not of this text.
    """
    return replaced(original, answer, recovered(original, kept, answer, reach))


def replaced(original: str, answer: str, found: Sequence[Recovered]) -> str:
    """``answer`` with each of the runs ``found`` in it replaced."""
    pieces, place = [], 0
    for one in found:
        pieces += [answer[place : one.answer[0]], original[slice(*one.original)]]
        place = one.answer[1]
    return "".join([*pieces, answer[place:]])


def recovered(
    original: str, kept: Sequence[int] | Ints, answer: str, reach: int | None = None
) -> tuple[Recovered, ...]:
    """The runs of ``recover``, in the order of the answer.

    From left to right, the longest run of words that stands in the compressed prompt (the white space between them may
    differ); of its places there the one whose original is shortest, the first of equals. No run goes over a place
    where the compressed prompt steps back in the original, as it does where contexts were reordered.
    """
    spans = _checked(np.asarray(kept, dtype=np.int64).reshape(-1, 2), len(original))
    prompt, said = words_of(text_of(original, spans)), words_of(answer)
    places = _in_original(prompt.places, spans)
    runs = Runs.of(prompt.words, said.words, _breaks(prompt.places, places, reach))

    def shortest(words: Ints, count: int) -> int:
        return int(words[np.argmin(places[words + count - 1, 1] - places[words, 0])])

    return tuple(
        Recovered(_stretch(said.places, first, count), _stretch(places, word, count))
        for first, count, word in runs.found(shortest)
    )


def _stretch(places: Ints, first: int, count: int) -> tuple[int, int]:
    return int(places[first, 0]), int(places[first + count - 1, 1])


def _checked(spans: Ints, length: int) -> Ints:
    begins, ends = spans[:, 0], spans[:, 1]
    if (begins < 0).any() or (ends < begins).any() or (ends > length).any():
        raise ValueError(f"kept: these spans are not of a text of {length} characters")
    return spans[begins < ends]


def _in_original(places: Ints, spans: Ints) -> Ints:
    """Characters (from, to) of the compressed prompt -> of the original, from the first to the last that was kept."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    shifts = spans[:, 1] - ends
    inside = places - np.array([0, 1])  # of the end, the last character inside
    found: Ints = places + shifts[np.searchsorted(ends, inside, side="right")] if len(places) else places
    return found


def _breaks(places: Ints, original: Ints, reach: int | None) -> NDArray[np.bool_]:
    """Whether a run must end before each word."""
    back = original[1:, 0] < original[:-1, 1]
    if reach is not None:
        cut = (original[1:, 0] - original[:-1, 1]) - (places[1:, 0] - places[:-1, 1])
        back = back | (cut > reach)
    return np.append(True, back)
