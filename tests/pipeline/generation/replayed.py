"""Decoding without a model: rounds that take made-up time on a made-up clock, and drafts that pass by chance.

All that decides is real: ``Course``, ``Policy``, what they learn and what they are told. A GPU is as one NVIDIA H200
with a 1.5B target and its 0.5B: plain steps of 1.6 ms (measured, 2026-11-29), and 70 ms for a recording of each pass
(reckoned from what drafting lost there before).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.generation import course
from pipeline.generation.course import Course
from pipeline.generation.paces import PLAIN, Way, size_of
from pipeline.generation.policy import COPYING, Ahead, Policy

CASCADES = [Way(rounds, 1 + 4 * rounds) for rounds in (1, 2, 4, 8)]
"""Rounds of a drafter over three copied tokens."""

Chance = Callable[[int, int], float]
"""Of a draft to pass, by row and tokens of its answer so far."""


@dataclass(frozen=True)
class Device:
    """What passes take: ``base`` seconds of one token of one row, so much more for each doubling of the ``width``, for
    each ``row`` and for each ``token``; of a drafter ``drafter`` times as much. ``record``: seconds for each pass that
    is recorded, none where nothing is."""

    base: float
    width: float
    row: float
    token: float
    drafter: float = 0.55
    record: float = 0.0

    def one(self, rows: int, width: int) -> float:
        rows = max(2, size_of(rows)) if self.record else rows
        return self.base * (1 + self.width * float(np.log2(width)) + self.row * rows + self.token * rows * width)

    def seconds(self, rows: int, way: Way) -> float:
        """Of a round."""
        return self.one(rows, way.width) + way.rounds * self.drafter * self.one(rows, 4)

    def reading(self, tokens: float) -> float:
        return tokens * self.base * self.drafter / 200


H200 = Device(1.55e-3, 0.11, 0.008, 0.0008, record=0.07)
CPU = Device(0.01, 0.0, 0.3, 0.5)
FLAT = Device(0.03, 0.01, 0.001, 0.0)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Steps:
    """As recorded steps are: every shape for itself, larger ones serve smaller. A way that is recorded takes its round
    and what recording it takes."""

    def __init__(self, device: Device, clock: Clock, noise: float) -> None:
        self.device, self.clock, self.noise = device, clock, noise
        self.recordings, self.known = 0, set[tuple[int, Way]]()
        self.gone: dict[int, int] = {}
        self.random = np.random.default_rng(3)

    def ready(self, rows: int, way: Way) -> bool:
        return not self.device.record or any(one == way and size >= rows for size, one in self.known)

    def done(self, rows: int) -> int:
        return self.gone.get(size_of(rows), 0)

    def __call__(self, slots: Any, way: Way, most: int, at_once: bool = False) -> None:
        rows = len(slots)
        self.gone[size_of(rows)] = self.done(rows) + 1
        if not self.ready(rows, way):
            self.recordings += 1
            self.known.add((size_of(rows), way))
            self.clock.now += self.device.record * (1 + way.rounds)
        took = self.device.seconds(rows, way)
        self.clock.now += took * float(self.random.uniform(1 - self.noise, 1 + self.noise))


@dataclass
class Luck:
    """Which drafts pass: copies, and a drafter's."""

    copies: Chance
    drafter: Chance = lambda row, made: 0.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def passed(self, row: int, made: int, way: Way) -> tuple[int, int]:
        """(drafted, passed): a round of a drafter copies one and a half tokens on average, and adds one."""
        if not way.rounds:
            drafted, chance = way.width - 1, self.copies(row, made)
        else:
            drafted, chance = way.rounds + int(self.random.integers(0, 3 * way.rounds + 1)), self.drafter(row, made)
        passes = self.random.random(drafted) < chance
        return drafted, int(np.cumprod(passes).sum())


class Shadow:
    """As if copies passed by chance."""

    def __init__(self, luck: Luck, made: Any) -> None:
        self.luck, self.made = luck, made

    def begin(self, *_: Any) -> None: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def wrote(self, rows: Sequence[int], look: bool) -> list[int]:
        """Two rounds or so in three."""
        some = [rows[int(at)] for at in self.luck.random.integers(0, len(rows), 2)][: 2 if len(rows) > 1 else 1]
        looked = [row for row in some if look and self.luck.random.random() < 0.7]
        return [self.luck.passed(row, int(self.made[row]), Way(0, COPYING[-1]))[1] for row in looked]


@dataclass
class Worker:
    """Answers batches, one after another. ``way``: always this one, else what pays; ``policy`` believes in passes that
    take what ``told`` says, where the ``device`` takes something else; ``noise``: the part that rounds are off."""

    device: Device
    luck: Luck
    patched: pytest.MonkeyPatch
    cascades: Sequence[Way] = ()
    way: Way | None = None
    told: Device | None = None
    noise: float = 0.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        told = self.told or self.device
        self.policy = Policy(told.seconds, self.cascades, 0, told.reading)
        self.steps = Steps(self.device, self.clock, self.noise)

    def answer(self, lengths: Sequence[int], at_once: int, prompt: int = 200) -> float:
        """Seconds for answers of these ``lengths``, so many at once; drafters read prompts of so many tokens."""
        self.patched.setattr(course, "CLOCK", self.clock)
        begun, made = self.clock.now, np.zeros(len(lengths), np.int64)
        some = Course(self.policy, self.steps, torch.device("cuda"), made)  # type: ignore[arg-type]
        some._shadow = Shadow(self.luck, made)  # type: ignore[assignment]
        on, waiting = list(range(min(at_once, len(lengths)))), list(range(at_once, len(lengths)))
        unread, current = np.full(len(lengths), prompt), False
        made[on] = 1
        some.arrived(None)
        while on:
            rows = np.array(on)
            left = float(np.array(lengths)[on + waiting].sum() - made[on].sum()) / len(on)
            missed = 0.0 if current else float(unread[on].sum())
            ahead = Ahead(len(on), left, 0, missed, float(prompt * len(waiting)), bool(waiting))
            way = self.way or some.way(ahead)
            if way.rounds and not current:
                with some.catching_up(missed):
                    self.clock.now += self.device.reading(missed)
                unread[on] = 0
            current = way.rounds > 0
            some.step(rows, way, 0)
            arrived = some.arrived(way)
            drafted, passed = np.array([self.luck.passed(row, int(made[row]), way) for row in on]).T
            made[rows] += 1 + passed
            unread[rows] += (1 + passed) * (not current)
            on = [row for row in on if made[row] < lengths[row]]
            some.saw(way, rows, np.array(on, np.int64), passed, drafted, bool(waiting), arrived)
            while waiting and len(on) < at_once:
                on.append(row := waiting.pop())
                made[row] = 1
                if current:
                    some.drafters_read(prompt)
                    with some.aside():
                        self.clock.now += self.device.reading(prompt)
                    unread[row] = 0
        return self.clock.now - begun


def believed(device: Device, off: float) -> Device:
    """A table that has all passes but plain ones so many times off."""

    class Believed(Device):
        def seconds(self, rows: int, way: Way) -> float:
            return super().seconds(rows, way) * (1.0 if way == PLAIN else off)

    return Believed(**vars(device))
