"""What is written so far, on the device: a line of tokens for each document that is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.maxgram import LONGEST, PADDING, chained
from pipeline.generation.sampling import uniform
from pipeline.passes.transfers import on_device
from schemas.stage import MOST_DRAFTS

Ints = NDArray[np.int64]

_LENGTH, _COLUMNS_FROM, _READ_FROM, _ANSWER_FROM, _KEPT_AT = range(5)
"""What is known of a line, by its place: ``_KEPT_AT`` is the line whose length is set with it."""

_NEAR = LONGEST + MOST_DRAFTS
"""Places before and behind the end of a line that a round looks at."""

_NOTHING: Ints = np.zeros(0, np.int64)


class Lines:
    """``number`` lines of ``width`` tokens, and one more that only fills up.

    A line holds texts to copy from, then what the models read: the tokens of prompt and answer. ``length`` tokens are
    written for good; what stands behind them is drafts, and ``drafters`` says whose. Vectors of a prompt are in no
    line, and take columns all the same.
    """

    def __init__(
        self, number: int, width: int, new: int, device: torch.device, launches: bool = False,
        chains: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """``new`` random numbers for each line, if any. ``launches``: whether kernels of our own may do what they can
        for them (``launched``). ``chains``: for how many tokens, and how long (``maxgram.chained``)."""
        self.idle, self.launches, self._device = number, launches, device
        self.tokens = torch.full((number + 1, PADDING + width), -1, device=device)
        self.drafters = torch.zeros_like(self.tokens)
        # One more, into which the length goes that the idle line would have: its own stays, with no kernel to reset it.
        self.known = torch.full((number + 2, 5), PADDING, device=device)
        self.known[:, _KEPT_AT] = torch.arange(number + 2, device=device)
        self.known[self.idle, _KEPT_AT] = number + 1
        self.length = self.known[:, _LENGTH]
        self.length += 2
        # Made once: making them is a kernel of its own, and an assigned number would come from the host.
        self._counted = torch.arange(-_NEAR, _NEAR + 1, device=device)
        self.numbers = torch.zeros(number + 1, new, dtype=torch.float64, device=device)
        self.tokens[self.idle, PADDING:] = 0
        self.leniences = torch.ones(number + 1, device=device)
        counters = torch.zeros(number + 2, dtype=torch.int64, device=device)
        self.scratch = counters, counters.int()  # of kernels: a row's own
        self.chains: torch.Tensor | None = None
        if chains:
            self.chains = torch.zeros(chains, dtype=torch.int32, device=device)
            self.learn(np.arange(chains[0]))

    def begin(
        self, slots: Ints, seeds: Sequence[int], copied: Sequence[Ints], prompts: Sequence[Ints], vectors: Ints,
        shared: Ints = _NOTHING,
    ) -> None:  # fmt: skip
        """Lines for these prompts, each behind the text that may be ``copied``, and that behind what all have
        ``shared``, with the numbers of these ``seeds``. There are so many ``vectors`` among the tokens of each."""
        first = PADDING + len(shared)
        begins = first + np.array([len(one) for one in copied])
        ends = begins + np.array([len(one) for one in prompts])
        own = np.full((len(slots), int(ends.max()) - first), -1)  # what is shared is spread on the device
        for row, both in enumerate(zip(copied, prompts, strict=True)):
            np.concatenate(both, out=own[row, : ends[row] - first])
        known = on_device(np.stack([ends, begins - vectors, begins, ends, slots], 1), self._device)
        at = known[:, _KEPT_AT]
        self.known[at] = known
        self.tokens.index_fill_(0, at, -1)
        self.tokens[:, first : first + own.shape[1]][at] = on_device(own, self._device)
        if len(shared):
            self.tokens[:, PADDING:first][at] = on_device(shared, self._device)
        if new := self.numbers.shape[1]:
            self.numbers[at] = uniform(seeds, new, self._device)

    def learn(self, follows: Ints) -> None:
        """From now on this is what comes after each token where nothing matches, ``[v]``."""
        assert self.chains is not None
        chained(on_device(follows, self._device), self.chains)

    def allow(self, slots: Ints, leniences: NDArray[np.float32]) -> None:
        """How lenient drafters of these lines are."""
        self.leniences[on_device(slots, self._device)] = on_device(leniences, self._device)

    def stay(self) -> None:
        """From now on lengths stay as they are, whatever is kept: a round can be timed again and again."""
        self.known[:, _KEPT_AT] = self.idle + 1

    def move(self, source: int, target: int) -> None:
        """A line to another place."""
        for one in (self.tokens, self.known[:, :_KEPT_AT], self.numbers, self.leniences):
            one[target] = one[source]

    def counted(self, first: int, end: int) -> torch.Tensor:
        """The numbers from ``first`` to ``end``, which is not among them."""
        return self._counted[_NEAR + first : _NEAR + end]

    def of(self, slots: torch.Tensor) -> Some:
        """The lines of these ``slots``, as they are now."""
        known = self.known[slots]
        length = known[:, _LENGTH]
        return Some(self, slots, known, length, length[:, None] + self._counted)


@dataclass(frozen=True, slots=True)
class Some:
    """Some of the ``lines``: what a round asks of them is looked up once, as each look is a kernel.

    ``length`` is what was written for good when they were taken, and ``near`` the places around it.
    """

    lines: Lines
    slots: torch.Tensor
    known: torch.Tensor
    length: torch.Tensor
    near: torch.Tensor

    @property
    def answer_from(self) -> torch.Tensor:
        """Where the answers begin, ``[rows]``."""
        return self.known[:, _ANSWER_FROM]

    @property
    def lenience(self) -> torch.Tensor:
        """Of their drafters, ``[rows]``."""
        return self.lines.leniences[self.slots]

    def columns(self, places: torch.Tensor, blind: bool) -> torch.Tensor:
        """Where a model stores what it reads at ``places`` ``[rows]`` behind the prompts of these lines: behind their
        vectors, too, unless it is ``blind`` to them."""
        return places - self.known[:, _READ_FROM if blind else _COLUMNS_FROM]

    def places(self, begin: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """The places from ``first`` to ``end`` behind each ``begin``, ``[rows, end - first]``; negative: before it."""
        if begin is self.length:
            return self.near[:, _NEAR + first : _NEAR + end]
        return begin[:, None] + self.lines.counted(first, end)

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The tokens at ``places`` ``[rows, n]``."""
        return self.lines.tokens[self.slots[:, None], places]

    def drafted_by(self, places: torch.Tensor) -> torch.Tensor:
        """Whose drafts the tokens at ``places`` ``[rows, n]`` are."""
        return self.lines.drafters[self.slots[:, None], places]

    def numbers(self, places: torch.Tensor) -> torch.Tensor:
        """Those for the tokens at ``places`` ``[rows, n]``; any where these are not of an answer."""
        numbers, made = self.lines.numbers, places - self.answer_from[:, None]
        return numbers[self.slots[:, None], made.clamp(0, numbers.shape[1] - 1)]

    def put(self, places: torch.Tensor, tokens: torch.Tensor) -> None:
        """``tokens`` at ``places``, ``[rows, n]``."""
        self.lines.tokens[self.slots[:, None], places] = tokens

    def mark(self, places: torch.Tensor, drafter: int) -> None:
        """The drafts at ``places`` ``[rows, n]`` are this ``drafter``'s."""
        self.lines.drafters[self.slots[:, None], places] = self.lines.counted(drafter, drafter + 1)

    def keep(self, length: torch.Tensor) -> None:
        """The first ``length`` tokens of each are written for good."""
        self.lines.length[self.known[:, _KEPT_AT]] = length
