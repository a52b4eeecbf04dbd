"""Batches of prompts through tokenising, scoring and fitting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.lanes import Done, Turns, by_length, in_lanes
from pipeline.compression.preparing import Preparing
from pipeline.compression.prompt import Copied, Prompt, Ready, Source
from pipeline.compression.reassembly import Fitted, fit
from pipeline.compression.registry import Method, Passed, Ranking
from pipeline.stages import Refusal


@dataclass(frozen=True, slots=True)
class Compressed:
    """A prompt that was shortened: its text and tokens, those it had, the budget, and markup as in ``Prompt``."""

    fitted: Fitted
    markup: NDArray[np.int64]
    original: int
    budget: int


Made = Compressed | Copied | Refusal

Batch = Done[list[Made]]


@dataclass(slots=True)
class _Reading:
    """Tells ``passed`` how much of a batch was read, and of each token only once, however often it is scored."""

    left: int
    passed: Passed

    def __call__(self, scored: int) -> None:
        read = min(scored, self.left)
        self.left -= read
        self.passed(read)


@dataclass(frozen=True, slots=True)
class Engine:
    """``method`` on a device with tokenisers and budget (``preparing``), batches in ``turns``."""

    preparing: Preparing
    method: Method
    turns: Turns = field(default_factory=Turns)

    def run(self, sources: Sequence[Source], passed: Passed) -> Iterator[Batch]:
        """All sources, longest first, batch by batch. ``passed`` is told their original tokens as they are read."""
        parts = [source.parts for source in sources]
        batches = by_length([one.characters for one in parts], self.method.abreast, parts, self.turns.apart)
        return in_lanes(batches, lambda places, gate: self._make([sources[place] for place in places], gate), passed)

    def _make(self, sources: Sequence[Source], passed: Passed) -> list[Made]:
        with self.turns.next:
            passed(0)  # who waited for others may have been told to stop meanwhile
            ready = self.preparing.prepare(sources)
        with self.turns.scoring:
            rankings = self._score(ready, passed)
        return self._finish(ready, rankings)

    def _score(self, ready: Sequence[Ready], passed: Passed) -> list[Ranking]:
        reading = _Reading(sum(one.original for one in ready if not isinstance(one, Refusal)), passed)
        reading(0)  # before the first pass, too, there may be a reason to stop
        rankings = self.method.score([one for one in ready if isinstance(one, Prompt)], reading)
        reading(reading.left)
        return rankings

    def _finish(self, ready: Sequence[Ready], rankings: Sequence[Ranking]) -> list[Made]:
        prompts = [one for one in ready if isinstance(one, Prompt)]
        fitted = iter(zip(prompts, fit(prompts, rankings, self.preparing.target), strict=True))
        return [_compressed(*next(fitted)) if isinstance(one, Prompt) else one for one in ready]


def _compressed(prompt: Prompt, fitted: Fitted | Refusal) -> Made:
    if isinstance(fitted, Refusal):
        return fitted
    return Compressed(fitted, prompt.markup, prompt.original, prompt.budget)
