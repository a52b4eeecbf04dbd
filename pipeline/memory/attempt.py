"""Where an attempt at a training stands, and what it leaves to the next one."""

from __future__ import annotations

import time

import torch

from pipeline.checkpoints import Checkpoint, Checkpoints
from pipeline.memory.encoder import Row
from pipeline.memory.plan import Numbers
from pipeline.memory.training import Trainer
from pipeline.passes.transfers import Fetch, fetch

LATELY = 16  # steps: lessons alternate, and some are harder than others


class Attempt:
    """At what ``trainer`` does, with ``checkpoints`` or without, from ``began`` on (``time.perf_counter``).

    ``step`` is the next to learn, ``before`` what was measured before the first, ``curve`` has a row for each that is
    done, and ``kept`` is how many of them the last checkpoint holds: None where there is no checkpoint.
    """

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints | None, began: float) -> None:
        self.step = 0
        self.kept: int | None = None
        self.before: list[Numbers] = []
        self._curve: list[Row] = []
        self._coming: list[tuple[int, Fetch, float, float]] = []
        self._trainer, self._checkpoints = trainer, checkpoints
        self._began, self._earlier, self._saved = began, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of work, that of earlier attempts included."""
        return self._earlier + time.perf_counter() - self._began

    def restore(self) -> bool:
        """Go on from the last checkpoint that is whole; says whether there is one."""
        found = self._checkpoints.latest() if self._checkpoints else None
        if found is None:
            return False
        self.before = [tuple(one) for one in found.tensors["before"].tolist()]
        self._curve = [(int(step), *rest) for step, *rest in found.tensors["curve"].tolist()]
        self._trainer.restore(found.tensors)
        self.step = self.kept = found.step
        self._earlier = found.seconds
        return True

    @property
    def curve(self) -> list[Row]:
        """What each step had to say; waits for the last one's loss."""
        self._arrived(0)
        return self._curve

    @property
    def lately(self) -> float | None:
        """The loss, a mean of the last ``LATELY`` steps whose own has arrived; None before the first has."""
        losses = [loss for _, loss, *_ in self._curve[-LATELY:]]
        return sum(losses) / len(losses) if losses else None

    def learned(self, loss: torch.Tensor, rate: float) -> None:
        """One step more, whose loss is not waited for before the next one is on its way."""
        self._coming.append((self.step, fetch(loss), rate, self.seconds))
        self._arrived(1)
        self.step += 1

    def _arrived(self, left: int) -> None:
        while len(self._coming) > left:
            step, loss, rate, seconds = self._coming.pop(0)
            self._curve.append((step, float(loss()), rate, seconds))

    def save_in_time(self, every: float) -> None:
        """A checkpoint, unless the last one is not yet so many seconds old."""
        if time.perf_counter() - self._saved >= every:
            self.save()

    def save(self) -> None:
        """A checkpoint, once there is something to go on from."""
        self._saved = time.perf_counter()
        if self._checkpoints is not None and self.before:
            self._checkpoints.save(self._checkpoint(self._trainer.tensors()))
            self.kept = self.step

    def save_last(self) -> None:
        """For an attempt after this one there is nothing to learn: the weights alone, and nothing beside them."""
        if self._checkpoints is not None:
            kept = {name: one for name, one in self._trainer.tensors().items() if name.startswith("weight.")}
            self._checkpoints.save(self._checkpoint(kept), kept=1)

    def _checkpoint(self, tensors: dict[str, torch.Tensor]) -> Checkpoint:
        before, curve = (torch.tensor(rows, dtype=torch.float64) for rows in (self.before, self.curve))
        return Checkpoint(self.step, self.seconds, {**tensors, "before": before, "curve": curve})
