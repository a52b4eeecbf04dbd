"""Batches of prompts through tokenising, scoring and fitting, the first and the last beside the model's work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.prompt import Copied, Preparing, Prompt, Ready, Source
from pipeline.compression.reassembly import Fitted, fit
from pipeline.compression.registry import Method, Passed, Ranking
from pipeline.stages import Refusal
from schemas.document import PromptParts

CHARACTERS = 2**23
"""Most characters of a batch, unless one document has more: bounds the memory of its tokens."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A prompt that was shortened: its text and tokens, those it had, the budget, and markup as in ``Prompt``."""

    fitted: Fitted
    markup: NDArray[np.int64]
    original: int
    budget: int


Made = Compressed | Copied | Refusal


@dataclass(frozen=True, slots=True)
class Batch:
    """Places of the sources in this batch, what came of each, and the seconds since the batch before it was done."""

    places: tuple[int, ...]
    made: tuple[Made, ...]
    seconds: float


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
    """``method`` on a device with tokenisers and budget (``preparing``)."""

    preparing: Preparing
    method: Method

    def run(self, sources: Sequence[Source], passed: Passed) -> Iterator[Batch]:
        """All sources, longest first, batch by batch. ``passed`` is told their original tokens as they are read.

        While the model scores one batch, a thread tokenises the next and fits the one before: both are mostly the
        tokenizer's compiled code, which does not hold the interpreter.
        """
        batches = _by_length(sources, self.method.abreast)
        since = time.perf_counter()
        with ThreadPoolExecutor(1, "compress") as beside:
            ahead = beside.submit(self._prepare, sources, batches[0]) if batches else None
            behind: tuple[tuple[int, ...], Future[list[Made]]] | None = None
            for number, places in enumerate(batches):
                assert ahead is not None
                ready = ahead.result()
                if number + 1 < len(batches):
                    ahead = beside.submit(self._prepare, sources, batches[number + 1])
                rankings = self._score(ready, passed)
                if behind:
                    since, seconds = _lap(since)
                    yield Batch(behind[0], tuple(behind[1].result()), seconds)
                behind = places, beside.submit(self._finish, ready, rankings)
            if behind:
                made = tuple(behind[1].result())
                yield Batch(behind[0], made, _lap(since)[1])

    def _prepare(self, sources: Sequence[Source], places: tuple[int, ...]) -> list[Ready]:
        return self.preparing.prepare([sources[place] for place in places])

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


def _lap(since: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now, now - since


def _by_length(sources: Sequence[Source], rows: int) -> list[tuple[int, ...]]:
    """Batches of similar length, longest first: the least padding, and memory trouble early rather than late."""
    lengths = [_characters(source.parts) for source in sources]
    batches: list[list[int]] = []
    total = 0
    for place in sorted(range(len(sources)), key=lambda place: -lengths[place]):
        if not batches or len(batches[-1]) >= rows or total + lengths[place] > CHARACTERS:
            batches.append([])
            total = 0
        batches[-1].append(place)
        total += lengths[place]
    return [tuple(batch) for batch in batches]


def _characters(parts: PromptParts) -> int:
    return sum(map(len, (parts.instruction, *parts.contexts, parts.question)))
