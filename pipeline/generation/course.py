"""Which way the rounds of a batch go, where as much is drafted as pays, and what its policy is told of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.paces import PLAIN, Way
from pipeline.generation.policy import Ahead, Policy
from pipeline.generation.shadow import Shadow
from pipeline.passes.recorded import Steps

Ints = NDArray[np.int64]

CLOCK = time.perf_counter


class Course:
    """Of one batch, by what ``policy`` knows and learns. ``steps`` do the rounds on this ``device``; ``made`` are the
    tokens of each row, in the round that is under way at least: they change from outside."""

    def __init__(
        self, policy: Policy, steps: Steps, device: torch.device, made: Ints, follows: Ints | None = None
    ) -> None:
        """``follows``: what mostly comes after each token, if that is drafted."""
        self._policy, self._steps, self._made = policy, steps, made
        self._shadow = Shadow(follows)
        # A GPU goes on while the host does something else: what a round takes is the time from one to the next.
        self._waits = device.type == "cuda"
        self._launched: deque[float] = deque()  # else what it took to launch those that have not arrived
        self._arrived, self._aside = CLOCK(), 0.0
        self._drains_from: Ints | None = None  # tokens of each row when the last of them had begun
        self._all_have = 0

    def way(self, ahead: Ahead) -> Way:
        """For the next round: ``Policy.way``, of what is ``ahead``."""
        ahead = replace(ahead, gone=self._steps.done(ahead.rows))
        return self._policy.way(ahead, lambda way: self._steps.ready(ahead.rows, way))

    def step(self, slots: Ints, way: Way, most: int) -> torch.Tensor:
        """A round, as ``steps`` do it; ways that the policy wants are recorded at once."""
        ready, before = self._steps.ready(len(slots), way), self._steps.recordings
        begun = CLOCK()
        found = self._steps(slots, way, most, way != PLAIN)
        took = CLOCK() - begun
        if self._steps.recordings > before:
            self._policy.recorded(way, took)
        if self._steps.recordings > before or not ready:
            self._aside += took
        if not self._waits:
            self._launched.append(took if ready else 0.0)
        return found

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done meanwhile is no part of a round."""
        begun = CLOCK()
        yield
        self._aside += CLOCK() - begun

    def drafters_read(self, tokens: float, seconds: float = 0.0) -> None:
        """As in ``Policy.read``."""
        if tokens:
            self._policy.read(tokens, seconds)

    @contextmanager
    def catching_up(self, tokens: float) -> Iterator[None]:
        """Drafters read so many tokens that they missed."""
        before = self._aside
        with self.aside():
            yield
        self.drafters_read(tokens, self._aside - before)

    def begin(self, row: int, texts: Sequence[Ints], made: Sequence[int], new: int) -> None:
        """All that the row may copy from, but for its answer of at most ``new`` tokens, which is ``made`` outside."""
        self._shadow.begin(row, texts, made, new)

    def arrived(self, way: Way | None) -> tuple[float, bool]:
        """What was begun is here: the seconds of a round, and whether nothing else is in them."""
        now, alone = CLOCK(), not self._aside
        took = max(0.0, now - self._arrived - self._aside)
        if not self._waits and way:
            took = self._launched.popleft()
            alone = took > 0
        self._arrived, self._aside = now, 0.0
        return took, alone

    def saw(
        self, way: Way | None, rows: Ints, on: Ints, accepted: Ints, drafted: Ints, waiting: bool,
        arrived: tuple[float, bool],
    ) -> None:  # fmt: skip
        """What was made of ``rows`` in a round, of which those that are ``on`` have not ended; None: first tokens."""
        copies = way is not None and way.width > 1 and not way.rounds
        would = self._shadow.wrote(rows.tolist(), not copies)
        self._shadow.keep(on.tolist())
        gained = self._gained(rows, on, accepted, waiting)
        if way:
            self._policy.would(would)
            self._policy.saw(way, drafted, accepted, gained, *arrived, waiting)

    def _gained(self, rows: Ints, on: Ints, accepted: Ints, waiting: bool) -> float:
        """Plain rounds that would have given as much: by the mean of all rows where others wait to take their places.
        Where none does, passes of fewer rows follow, which take hardly less where a pass mostly waits for its weights:
        then all must have come as far."""
        mean = 1 + float(accepted.mean())
        if waiting or len(self._made) == 1:
            return mean
        if self._drains_from is None:
            self._drains_from = self._made.copy()
            self._drains_from[rows] -= accepted + 1
        far = self._made - self._drains_from
        all_have = int(far[on].min() if len(on) else far[rows].max())
        new, self._all_have = max(0, all_have - self._all_have), max(all_have, self._all_have)
        fixed = min(1.0, self._policy.seconds(1) / self._policy.seconds(len(rows)))
        return fixed * new + (1 - fixed) * mean
