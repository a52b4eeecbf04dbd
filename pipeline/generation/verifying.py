"""Which drafts stand: those that a model would have said, up to the first that it would not, and what it says there.

A model says the likeliest token, or the one drawn at the document's own number. All on the device, and in one launch
(``settling``) where these are trusted (``launched``).
"""

from __future__ import annotations

import torch

from pipeline.generation.lines import Lines, Some
from pipeline.generation.sampling import Choosing, peaks

COPIES = 0
"""The number of Max-Gram among those that draft."""

_MOST = 32
"""Tokens of a row that are settled in one launch: a program holds the peaks of all of them."""


def settle(
    some: Some, logits: torch.Tensor, written: torch.Tensor, drafts: torch.Tensor, end: torch.Tensor | None,
    only: int | None, choose: Choosing,
) -> torch.Tensor:  # fmt: skip
    """What the target says by ``logits`` ``[rows * n, v]`` at the places that are ``written`` ``[rows, n]``, from the
    lines' length on, is kept up to the first that is not the draft there, ``drafts`` ``[rows, n - 1]``.

    Drafts end before place ``end`` ``[rows]``, if any end early; ``only`` one has drafted, or those that are marked.
    Gives tokens, whose draft was at each but the last of the places (-1: none), and how many of the tokens count:
    int64 ``[rows, 2 * n + 1]``.
    """
    lines, (rows, width) = some.lines, written.shape
    if lines.launches and width <= _MOST:
        from pipeline.generation import settling  # where there is no GPU there is no Triton

        where = lines.tokens, lines.known, some.slots, some.length
        whose = lines.drafters if only is None else only
        return settling.settle(*_peaks(some, logits, written, choose), *where, width, end, whose)
    chosen = _chosen(some, logits, written, choose)
    passed = chosen[:, :-1] == drafts
    if end is None:
        whose_drafts = [lines.counted(one, one + 1).expand(rows, n) for one, n in ((COPIES, width - 1), (-1, 1))]
    else:
        there = written < end[:, None]
        whose_drafts = [torch.where(there, some.drafted_by(written) if only is None else only, -1)]
        passed = passed & there[:, :-1]
    count = _agreed(passed, lines)
    some.put(written, chosen)
    some.keep(some.length + count)
    return torch.cat([chosen, *whose_drafts, count[:, None]], 1)


def write(
    some: Some, logits: torch.Tensor, length: torch.Tensor, written: torch.Tensor, drafts: torch.Tensor,
    choose: Choosing, lenience: float | torch.Tensor, number: int | None,
) -> torch.Tensor:  # fmt: skip
    """What a drafter says at the places that are ``written``, from ``length`` ``[rows]`` on, is drafted in place of the
    ``drafts`` that it checks -> the length with it. Its own are marked by its ``number``, if any.

    With a ``lenience`` over 1, or ``[rows]`` of them, it passes drafts of a probability over 1 / lenience. Also what it
    would say behind a draft that did not pass is written: the next round writes over it.
    """
    lines, width = some.lines, written.shape[1]
    lenient = isinstance(lenience, torch.Tensor) or lenience > 1
    if lines.launches and not lenient and width <= _MOST:
        from pipeline.generation import settling

        where, marks = (lines.tokens, some.slots, length), None if number is None else lines.drafters
        return settling.write(*_peaks(some, logits, written, choose), *where, width, marks, number or 0)
    said = _chosen(some, logits, written, choose)
    passed = said[:, :-1] == drafts
    if lenient:
        least = 1 / lenience[:, None] if isinstance(lenience, torch.Tensor) else 1 / lenience
        known, chances = drafts.clamp(0, logits.shape[1] - 1), logits.view(*written.shape, -1)[:, :-1]
        chances = chances.softmax(-1, dtype=torch.float32).gather(-1, known[..., None])[..., 0]
        passed = passed | ((chances > least) & (known == drafts))
        said = torch.cat([torch.where(passed, drafts, said[:, :-1]), said[:, -1:]], 1)
    some.put(written, said)
    length = length + _agreed(passed, lines)
    if number is not None:
        some.mark(length[:, None] - 1, number)
    return length


def _peaks(
    some: Some, logits: torch.Tensor, places: torch.Tensor, choose: Choosing
) -> tuple[tuple[torch.Tensor, torch.Tensor], int]:
    """Peaks of the logits' pieces, and the size of a piece; of what is drawn a single one."""
    if choose.sampled:
        drawn = _chosen(some, logits, places, choose).view(-1, 1)
        return (drawn, drawn), 0
    highest, at = peaks(logits)
    return (highest, at), logits.shape[1] // highest.shape[1]


def _chosen(some: Some, logits: torch.Tensor, places: torch.Tensor, choose: Choosing) -> torch.Tensor:
    """The tokens at ``places``, ``[rows, n]``."""
    return choose(logits, some.numbers(places).flatten() if choose.sampled else None).view(places.shape)


def _agreed(passed: torch.Tensor, lines: Lines) -> torch.Tensor:
    """How many drafts of each row ``passed`` ``[rows, n]`` before the first that did not, and one, ``[rows]``."""
    count = passed.shape[1] + 1
    if count == 1:
        return lines.counted(1, 2).expand(len(passed))
    return torch.where(passed, count, lines.counted(1, count)).amin(1)
