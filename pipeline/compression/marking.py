"""What a part holds beside plain words: what must stay in it, what has a rate of its own, markup that is not text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.compress import CompressSpec

Ints = NDArray[np.int64]

_NONE = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Marked:
    """A part without its markup.

    ``protected``: characters ``[n, 2]`` of ``text`` (from, to; sorted, disjoint) that come out byte for byte.
    ``rates``: spans with a rate of their own (from, to, rate). ``markup``: ``[n, 2]``, places in ``text`` before which
    markup of so many characters stood in the source.
    """

    text: str
    protected: Ints = field(default_factory=lambda: _NONE)
    rates: tuple[tuple[int, int, float], ...] = ()
    markup: Ints = field(default_factory=lambda: _NONE)


class UnmarkableError(ValueError):
    """The part is not what the spec says it is (no JSON, an open tag). ``code`` is short and stable."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


Marking = Callable[[str], Marked]
"""A context -> what must stay in it. Raises ``UnmarkableError``."""


def build_marking(spec: CompressSpec) -> Marking:
    """The marking that ``spec.keep`` and ``spec.structure`` ask for."""
    del spec
    return Marked
