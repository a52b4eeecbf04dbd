"""All that decoding knows of a cache: passes that append to what is stored of rows, gather rows, and roll them back.

Whatever keeps this promise can stand behind an answer, and drafts: keys and values in rectangles (``padded``), end to
end (``packed``), beside those of an encoder's text (``encoded``); fewer of them, smaller ones, or none. A column is a
place of a prompt, token or vector, or a token of an answer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.passes.vectors import Vectors

Ints = NDArray[np.int64]


class StoredPasses(Protocol):
    """Forward passes of many rows at once, each after what was stored of it. Nothing is stored yet.

    To roll a row back is to let it go on behind fewer columns than it has: those beyond are forgotten, and cost nothing
    to forget. Hence every pass says behind how many it reads, and drafts that were not accepted are read over.
    """

    records: ClassVar[bool]
    """Whether a step can be recorded (``recorded``): all that changes from one to the next lies on the device."""

    @property
    def least(self) -> int:
        """Rows that a step takes at least."""

    def __init__(self, trunk: Any, rows: int, window: int) -> None:
        """Of a model's ``trunk``, for at most ``rows`` at once, whose tokens have at most ``window`` positions."""

    def run(
        self, rows: Ints, ids: torch.Tensor, cached: Ints, counts: Ints, vectors: Vectors | None = None
    ) -> torch.Tensor:
        """Append texts: ``counts[i]`` of the tokens ``ids``, and of the ``vectors`` in place of some, behind the first
        ``cached[i]`` columns of row ``rows[i]`` -> their hidden states ``[tokens, d]``, row by row."""

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        """Append as many tokens to each of the rows ``slots``: ``ids`` ``[rows, new]`` behind the first ``stored``
        columns -> hidden states ``[rows * new, d]``. All is on the device; no row has more than ``most`` columns
        afterwards."""

    def copy(self, sources: Ints, targets: Ints, counts: Ints) -> None:
        """Gather: rows ``targets`` begin as rows ``sources`` do, which are others, by ``counts`` columns."""

    def reserve(self, columns: int, longest: int) -> None:
        """Before the first pass: room for ``columns`` in all, and at most ``longest`` of a row."""

    def place(self, rows: Ints, begins: Ints) -> None:
        """From now on ``rows`` have the room that begins at these of the columns, and nothing stored."""
