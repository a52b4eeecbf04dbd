"""Batches of prompts through tokenising, scoring and fitting, a few at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

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

LANES = 3
"""Batches in hand: one is prepared, one scored, one decided on or fitted."""


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


@dataclass(slots=True)
class _Gate:
    """``passed`` for several threads: one at a time, and none once the work has ended."""

    passed: Passed
    shut: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, tokens: int) -> None:
        with self.lock:
            if self.shut:
                raise CancelledError
            self.passed(tokens)


@dataclass(frozen=True, slots=True)
class Engine:
    """``method`` on a device with tokenisers and budget (``preparing``)."""

    preparing: Preparing
    method: Method

    def run(self, sources: Sequence[Source], passed: Passed) -> Iterator[Batch]:
        """All sources, longest first, batch by batch. ``passed`` is told their original tokens as they are read.

        A few batches are in hand at once: while the model scores one, others are tokenised and fitted, which is mostly
        the tokenizer's compiled code and does not hold the interpreter; and while one's segment is decided on, the
        device has another's to read.
        """
        batches = _by_length(sources, self.method.abreast)
        since = time.perf_counter()
        gate = _Gate(passed)
        with ThreadPoolExecutor(LANES, "compress") as lanes:
            hand: deque[tuple[tuple[int, ...], Future[list[Made]]]] = deque()
            try:
                for places in batches:
                    hand.append((places, lanes.submit(self._make, [sources[place] for place in places], gate)))
                    if len(hand) >= LANES:
                        since, batch = _ended(since, hand)
                        yield batch
                while hand:
                    since, batch = _ended(since, hand)
                    yield batch
            finally:
                gate.shut = True  # whatever ended this, the other lanes end at their next pass

    def _make(self, sources: Sequence[Source], gate: _Gate) -> list[Made]:
        gate(0)
        ready = self.preparing.prepare(sources)
        return self._finish(ready, self._score(ready, gate))

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


def _ended(since: float, hand: deque[tuple[tuple[int, ...], Future[list[Made]]]]) -> tuple[float, Batch]:
    """The oldest batch in hand, once it is made, and the time then."""
    places, made = hand.popleft()
    outcomes = tuple(made.result())
    now = time.perf_counter()
    return now, Batch(places, outcomes, now - since)


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
