"""A few batches in hand at once: while one is read by the model, others are prepared, decided on and put together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.compression.registry import Passed

T = TypeVar("T")

LANES = 4
"""Batches in hand: one is prepared, two are with the model, one is put together."""

RAMP = 3
"""Where a device waits for the first batch, it has an eighth of later ones' rows, the next a quarter, then half."""

CHARACTERS = 2**23
"""Most characters of a batch, unless one document has more: bounds the memory of its tokens. As many batches as
lanes are in memory, and the one before them until it is written down."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A batch: its places among all documents, what came of it, and the seconds since the batch before it was done."""

    places: tuple[int, ...]
    made: T
    seconds: float


@dataclass(frozen=True, slots=True)
class Turns:
    """Whose turn it is: of the batches in hand one is prepared (``next``), few are with the model (``scoring``).

    All prepared at once, sharing one interpreter, the first would be ready as late as the last, and the device would
    wait for it. A GPU is ``apart`` from who prepares: it reads one batch while another is decided on, and does not wait
    long, since the first batches are small.
    """

    apart: bool = False
    next: threading.Lock = field(default_factory=threading.Lock)
    scoring: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))

    @classmethod
    def on(cls, device: str) -> Turns:
        """At a model on ``device``."""
        apart = device.startswith("cuda")
        return cls(apart, scoring=threading.Semaphore(2 if apart else 1))


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


def in_lanes(
    batches: Sequence[tuple[int, ...]], make: Callable[[tuple[int, ...], Passed], T], passed: Passed
) -> Iterator[Done[T]]:
    """``make(places, passed)`` of every batch, each in a thread of its own, in the order of ``batches``.

    What ends one (``passed`` may raise) ends all, at their next call of ``passed``.
    """
    gate = _Gate(passed)
    hand: deque[tuple[tuple[int, ...], Future[T]]] = deque()
    waiting = deque(batches)
    since = time.perf_counter()
    with ThreadPoolExecutor(LANES, "compress") as lanes:

        def take_up() -> None:
            while waiting and len(hand) < LANES:
                places = waiting.popleft()
                hand.append((places, lanes.submit(make, places, gate)))

        try:
            take_up()
            while hand:
                places, future = hand.popleft()
                made = future.result()
                take_up()  # before whoever asked does something with this one
                before, since = since, time.perf_counter()
                yield Done(places, made, since - before)
        finally:
            gate.shut = True


def by_length(
    lengths: Sequence[int], rows: int, texts: Sequence[object] = (), awaited: bool = False
) -> list[tuple[int, ...]]:
    """Batches of at most ``rows`` documents of similar length in characters, longest first: the least padding, and
    memory trouble early rather than late. The first ones are small where the first is ``awaited``.

    Neighbours with equal ``texts`` (one document at several rates) share tokens and scores: a batch may have twice as
    many rows rather than end among them.
    """
    batches: list[list[int]] = []
    most, total = rows, 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if texts and batches and len(batches[-1]) < 2 * most and texts[batches[-1][-1]] == texts[place]:
            batches[-1].append(place)
            continue
        if not batches or len(batches[-1]) >= most or total + lengths[place] > CHARACTERS:
            most = max(1, rows >> max(0, RAMP - len(batches))) if awaited else rows
            batches.append([])
            total = 0
        batches[-1].append(place)
        total += lengths[place]
    return [tuple(batch) for batch in batches]
