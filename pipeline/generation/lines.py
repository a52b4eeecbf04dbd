"""What is written so far, on the device: a line of tokens for each document that is worked on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.maxgram import PADDING
from pipeline.generation.sampling import uniform
from pipeline.passes.transfers import on_device

Ints = NDArray[np.int64]


class Lines:
    """``number`` lines of ``width`` tokens, and one more that only fills up.

    A line holds texts to copy from, then what the models read: the tokens of prompt and answer. ``length`` tokens are
    written for good; what stands behind them is drafts, and ``drafters`` says whose. Vectors of a prompt are in no
    line, and take columns all the same.
    """

    def __init__(self, number: int, width: int, new: int, device: torch.device) -> None:
        """``new`` random numbers for each line, if any."""
        self.idle, self._device = number, device
        self.tokens = torch.full((number + 1, PADDING + width), -1, device=device)
        self.drafters = torch.zeros_like(self.tokens, dtype=torch.int8)
        self.length = torch.full((number + 1,), PADDING + 2, device=device)
        self.read_from = torch.full((number + 1,), PADDING, device=device)
        self.answer_from = torch.full((number + 1,), PADDING, device=device)
        self._columns_from = torch.full((number + 1,), PADDING, device=device)
        self._places = torch.arange(PADDING + width, device=device)  # once: making it is a kernel of its own
        self._numbers = torch.zeros(number + 1, new, dtype=torch.float64, device=device)
        self.tokens[self.idle, PADDING:] = 0

    def begin(
        self, slots: Ints, seeds: Sequence[int], copied: Sequence[Ints], prompts: Sequence[Ints], vectors: Ints
    ) -> None:
        """Lines for these prompts, each behind the text that may be ``copied``, with the numbers of these ``seeds``.
        There are so many ``vectors`` among the tokens of each."""
        texts = [np.concatenate(both) for both in zip(copied, prompts, strict=True)]
        filled = np.full((len(texts), self.tokens.shape[1]), -1)
        for row, text in enumerate(texts):
            filled[row, PADDING : PADDING + len(text)] = text
        begins, ends = PADDING + np.array([len(one) for one in copied]), PADDING + np.array([len(one) for one in texts])
        at, start, end, columns = on_device(np.stack([slots, begins, ends, begins - vectors]), self._device)
        self.tokens[at] = on_device(filled, self._device)
        self.length[at], self.read_from[at], self.answer_from[at], self._columns_from[at] = end, start, end, columns
        if new := self._numbers.shape[1]:
            self._numbers[at] = uniform(seeds, new, self._device)

    def move(self, source: int, target: int) -> None:
        """A line to another place."""
        for one in (self.tokens, self.length, self.read_from, self.answer_from, self._columns_from, self._numbers):
            one[target] = one[source]

    def columns(self, slots: torch.Tensor, places: torch.Tensor, blind: bool) -> torch.Tensor:
        """Where a model stores what it reads at ``places`` ``[rows]`` behind the prompts of these lines: behind their
        vectors, too, unless it is ``blind`` to them."""
        return places - (self.read_from if blind else self._columns_from)[slots]

    def places(self, begin: torch.Tensor, count: int) -> torch.Tensor:
        """The ``count`` places from each ``begin``, ``[rows, count]``."""
        return begin[:, None] + self._places[:count]

    def at(self, slots: torch.Tensor, begin: torch.Tensor, count: int) -> torch.Tensor:
        """The ``count`` tokens from place ``begin`` of each of these lines, ``[rows, count]``."""
        return self.tokens[slots[:, None], self.places(begin, count)]

    def drafted_by(self, slots: torch.Tensor, begin: torch.Tensor, count: int) -> torch.Tensor:
        """Whose drafts the ``count`` tokens from place ``begin`` of each of these lines are, ``[rows, count]``."""
        return self.drafters[slots[:, None], self.places(begin, count)].long()

    def numbers(self, slots: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Those of these lines for the tokens after the ones at ``places`` ``[rows, n]``; any where these are not of an
        answer."""
        made = places + 1 - self.answer_from[slots][:, None]
        return self._numbers[slots[:, None], made.clamp(0, self._numbers.shape[1] - 1)]

    def put(self, slots: torch.Tensor, begin: torch.Tensor, tokens: torch.Tensor, drafter: int | None = None) -> None:
        """``tokens`` ``[rows, count]`` at place ``begin`` of each of these lines; drafts are their ``drafter``'s."""
        places = self.places(begin, tokens.shape[1])
        self.tokens[slots[:, None], places] = tokens
        if drafter is not None:
            whose = torch.full_like(tokens, drafter, dtype=torch.int8)  # an assigned number would come from the host
            self.drafters[slots[:, None], places] = whose

    def keep(self, slots: torch.Tensor, length: torch.Tensor) -> None:
        """The first ``length`` tokens of each of these lines are written for good."""
        self.length[slots] = length
        self.length[self.idle].fill_(PADDING + 2)  # an assigned number would come from the host: not recorded
