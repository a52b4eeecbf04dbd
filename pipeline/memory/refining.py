"""Slots fitted to their own spans: some steps of gradient descent from where the encoder left them.

An encoder reads a span once, and nobody tells it what it got wrong. Who encodes has the span: it can be asked back from
its slots, and these moved until it comes. The model that reads them stays as it is. (That vectors hold far more than
encoders put into them was shown by Kuratov et al., arXiv 2502.13063, from nothing and in thousands of steps.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.fit import Fit
from pipeline.memory.imagining import Imagined, imagined
from pipeline.memory.readback import Readback
from pipeline.memory.spans import Ints
from pipeline.passes.transfers import on_device

RATE = 0.02
"""What a number moves at first, in deviations of this number over slots of the encoder's training: numbers of a slot
differ by hundreds."""

FASTER, SLOWER = 1.2, 0.5
"""Times that it moves as far after a step that helped its span, and after one that did not."""

SURE = -math.log(0.9)
"""Nats of a token below which nothing more is asked of it."""

_MEAN, _SQUARE = 0.9, 0.95
"""What Adam keeps of a slope, and of its square, from step to step."""


def refined(
    coder: Autoencoder, spans: Sequence[Ints], slots: Sequence[torch.Tensor], fit: Fit,
    alive: Callable[[], None] = lambda: None,
) -> list[torch.Tensor]:  # fmt: skip
    """Slots ``[k, d]`` of each span after at most so many steps of Adam on the nats of repeating it, with a rate of its
    own: those with which every token is sure, or else, of all that were tried, those of the fewest nats. With
    continuations these are also of what the target says in so many of its own (``imagining``), and nothing is sure. A
    step is a pass of all spans that are not done, and its way back; ``alive`` is called before each, and may raise."""
    made = [one.detach() for one in slots]
    if not made or not fit.steps:
        return made
    with torch.inference_mode(False), torch.enable_grad():
        goes = imagined(coder, spans, fit.continuations, alive) if fit.continuations else None
        fitting = _Fitting.of(coder, spans, slots, goes)
        for step in range(1, fit.steps + 2):
            alive()
            done = fitting.look(last=step > fit.steps)
            for number, best, ends in zip(fitting.numbers, torch.split(fitting.best, fitting.sizes), done, strict=True):
                if ends:
                    made[number] = best.to(made[number].dtype)
            if all(done):
                break
            fitting = fitting.without(done)
            fitting.move(step)
    return made


@dataclass(slots=True)
class _Fitting:
    """Spans that are not done, by their ``numbers``, the ``sizes`` of their slots, and the span of each slot, ``row``.
    By slot, ``[sum of sizes, d]``: where they are ``now`` and were at ``best``, what ``slope`` of the nats there is,
    Adam's ``mean`` and ``square`` of it; by span: the ``least`` nats a token, those of the step ``before``, and how far
    it moves, its ``rate``."""

    coder: Autoencoder
    spans: list[Ints]
    numbers: list[int]
    sizes: list[int]
    row: torch.Tensor
    goes: Imagined | None
    repeated: Readback
    gone_on: Readback | None
    now: torch.Tensor
    best: torch.Tensor
    slope: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    least: torch.Tensor
    before: torch.Tensor
    rate: torch.Tensor

    @classmethod
    def of(
        cls, coder: Autoencoder, spans: Sequence[Ints], slots: Sequence[torch.Tensor], goes: Imagined | None
    ) -> _Fitting:
        """Nothing is known yet."""
        begun = torch.cat([*slots]).detach().float()
        unknown, still = torch.full((len(slots),), math.inf, device=begun.device), torch.zeros_like(begun)
        sizes, rate = [len(one) for one in slots], torch.full_like(unknown, RATE / FASTER)
        repeated = Readback(coder, sizes, spans, "AE")
        gone_on = Readback(coder, sizes, [*goes.ids.cpu().numpy()], "LM") if goes else None
        return cls(
            coder, [*spans], [*range(len(slots))], sizes, _rows(sizes, begun.device), goes, repeated, gone_on,
            begun, begun, still, still, still, unknown, unknown, rate,
        )  # fmt: skip

    def look(self, last: bool) -> list[bool]:
        """What the slots are worth, and how that changes with them, unless it is the ``last`` look -> of which spans it
        was the last."""
        now = self.now.detach().requires_grad_(not last)
        again = self.repeated.nats(now)
        each, worst = again.sum(1) / self.repeated.lengths, again.detach().amax(1)
        total, slope = each.detach(), None if last else _slope(each, now)
        if self.gone_on and self.goes:  # once what the first needed is let go
            each = self.gone_on.nats(now, self.goes.states).mean(1).view(len(each), -1).mean(1)
            total = total + each.detach()
            slope = None if slope is None else slope + _slope(each, now)
            worst = torch.full_like(worst, math.inf)
        better = (total < self.least) | (worst < SURE)
        self.best = torch.where(better[self.row, None], self.now, self.best)
        self.least = torch.where(better, total, self.least)
        self.rate = self.rate * torch.where(total < self.before, FASTER, SLOWER)
        self.before = total
        if slope is None:
            return [True] * len(self.sizes)
        self.slope = slope
        done: list[bool] = (~(worst >= SURE)).tolist()  # what is no number will be none
        return done

    def without(self, done: Sequence[bool]) -> _Fitting:
        """Those that are not ``done``: with continuations, all."""
        if not any(done):
            return self
        on = [at for at, one in enumerate(done) if not one]
        spans, sizes = [self.spans[at] for at in on], [self.sizes[at] for at in on]
        span = on_device(np.array(on, np.int64), self.now.device)
        slot = torch.isin(self.row, span)
        return replace(
            self, spans=spans, numbers=[self.numbers[at] for at in on], sizes=sizes,
            row=_rows(sizes, self.now.device), repeated=Readback(self.coder, sizes, spans, "AE"),
            **{name: getattr(self, name)[slot] for name in ("now", "best", "slope", "mean", "square")},
            **{name: getattr(self, name)[span] for name in ("least", "before", "rate")},
        )  # fmt: skip

    def move(self, step: int) -> None:
        """Down the slope (Adam), numbers as far as they differ between slots."""
        slope = (self.slope * self.coder.typical[1]).nan_to_num(0, 0, 0)
        self.mean, self.square = torch.lerp(slope, self.mean, _MEAN), torch.lerp(slope.square(), self.square, _SQUARE)
        size = (self.square / (1 - _SQUARE**step)).sqrt().clamp_min(1e-12)
        way = self.mean / (1 - _MEAN**step) / size
        self.now = self.now - self.rate[self.row, None] * self.coder.typical[1] * way


def _rows(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    return on_device(np.repeat(np.arange(len(sizes)), sizes), device)


def _slope(nats: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(nats.sum(), now)
    return found
