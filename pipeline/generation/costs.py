"""What a pass of a model takes on this machine, by rows and tokens of each: measured once (``kept_costs``)."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import out_of_memory
from pipeline.generation.launched import launches
from pipeline.generation.lines import Lines
from pipeline.generation.rounds import Copying, Model
from pipeline.generation.sampling import Choosing
from pipeline.generation.timing import timed
from pipeline.generation.verifying import COPIES, settle
from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.encoded import EncodedPasses
from pipeline.passes.recorded import RECORDERS, Output, Run
from schemas.stage import GenerateSpec

log = logging.getLogger(__name__)

WIDTHS = (1, 2, 4, 8, 16, 32)
"""Tokens of a row in a pass."""

_ROWS = (1, 2, 4, 8, 16, 64)
_STORED = 512  # columns of each row before
_SECONDS = 3.0  # of passes, after which the rest is reckoned up: on a CPU large ones take long
_RUNS = 5
_SHORT = 0.1  # seconds of runs that are enough on a CPU: short ones are what other work on it slows down most
_SPOTS = ((0, 0), (0, 3))  # of the table, measured again before it is trusted: one row, and what more tokens of it take
_LIKE = 1.5  # times that they may be off: the machine is another, or has other work to do

SCOPE = [_ROWS, WIDTHS, _STORED]
"""What is measured: tables of another scope say something else."""


class Costs:
    """Seconds of a pass for any number of rows, by ``WIDTHS``."""

    def __init__(self, seconds: NDArray[np.float64], recorded: bool = False) -> None:
        """``seconds`` ``[_ROWS, WIDTHS]``; nan where it was not measured: there time grows as the tokens do. Passes
        that are ``recorded`` have a power of two of rows."""
        self.measured, self._recorded = seconds, recorded
        filled = seconds.copy()
        for row, rows in enumerate(_ROWS):
            for place, width in enumerate(WIDTHS):
                if np.isnan(filled[row, place]) and place:
                    filled[row, place] = filled[row, place - 1] * width / WIDTHS[place - 1]
                elif np.isnan(filled[row, place]):
                    filled[row, place] = filled[row - 1, place] * rows / _ROWS[row - 1]
        self._known: dict[int, list[float]] = {}
        self._seconds = np.maximum.accumulate(np.maximum.accumulate(filled, 0), 1)  # more never takes less

    def at(self, rows: int, width: int) -> float:
        """Seconds of a pass of ``rows`` rows and ``width`` tokens each. Between what was measured, those of the next
        wider: some kernels take so many tokens and no more; beyond it, time grows as the tokens do."""
        known = self.of(rows)
        if width > WIDTHS[-1]:
            return known[-1] * width / WIDTHS[-1]
        return known[bisect_left(WIDTHS, width)]

    def reading(self, tokens: float) -> float:
        """Seconds for so many tokens of prompts, by the largest pass that was measured."""
        return tokens * self.of(_ROWS[-1])[-1] / (_ROWS[-1] * WIDTHS[-1])

    def of(self, rows: int) -> list[float]:
        """Seconds by ``WIDTHS`` of a pass of ``rows`` rows."""
        rows = 1 << (rows - 1).bit_length() if self._recorded else rows
        if rows not in self._known:
            beyond = max(1.0, rows / _ROWS[-1])
            self._known[rows] = [float(np.interp(rows, _ROWS, column)) * beyond for column in self._seconds.T]
        return self._known[rows]


Make = Callable[[int], Model]
"""The model with passes for so many rows."""


@torch.inference_mode()
def measured(make: Make, records: bool, look: Callable[[], None]) -> Costs:
    """Of passes that are recorded if ``records``. ``look`` is called in between, and may raise."""
    seconds = np.full((len(_ROWS), len(WIDTHS)), np.nan)
    # In the order of their tokens, so that what is left out is the largest.
    cells = sorted(np.ndindex(*seconds.shape), key=lambda one: (_ROWS[one[0]] * WIDTHS[one[1]], one))
    clock, spent = _Clock(make, records), 0.0
    for row, place in cells:
        look()
        try:
            seconds[row, place] = clock.seconds(row, place)
        except Exception as error:
            if not out_of_memory(error) or np.isnan(seconds[0, 0]):
                raise
            log.info("no memory is left to measure passes of %d rows and %d tokens each", _ROWS[row], WIDTHS[place])
            break
        spent += 2 * float(seconds[row, place])
        if spent > _SECONDS:
            break
    return Costs(seconds, records)


@torch.inference_mode()
def hold(costs: Costs, make: Make, records: bool) -> bool:
    """Whether ``costs`` that were measured earlier are still what passes take, by two of them."""
    clock, spots = _Clock(make, records), [one for one in _SPOTS if not np.isnan(costs.measured[one])]
    found = np.array([clock.seconds(*one) for one in spots])
    known = np.array([costs.measured[one] for one in spots])
    return bool(spots and np.all(np.maximum(found / known, known / found) <= _LIKE))


class _Clock:
    """Times passes."""

    def __init__(self, make: Make, records: bool) -> None:
        self._make, self._records = make, records
        self._models: dict[int, Model] = {}

    def seconds(self, row: int, place: int) -> float:
        """Of a pass of so many of ``_ROWS`` and ``WIDTHS``."""
        rows = _ROWS[row]
        if rows not in self._models:
            self._models[rows] = _ready(self._make, rows)
        return _seconds(self._models[rows], rows, WIDTHS[place], self._records)


def _ready(make: Make, rows: int) -> Model:
    columns = _STORED + max(WIDTHS)
    model = make(rows)
    if rows < model.passes.least:
        model = make(rows := model.passes.least)
    model.passes.reserve(rows * columns, columns)
    model.passes.place(np.arange(rows), np.arange(rows) * columns)
    if isinstance(model.passes, EncodedPasses):
        model.passes.pretend(_STORED)
    return model


def _seconds(model: Model, rows: int, width: int, records: bool) -> float:
    """Of a round: drafts are copied, read, translated where the vocabulary is another, and set against what is said."""
    device, number = model.head.weight.device, max(rows, model.passes.least)
    lines = Lines(number, _STORED + 2 * width, 0, device, launches(device))
    nothing, texts = [np.zeros(0, np.int64)] * number, [np.zeros(_STORED + 1, np.int64)] * number
    lines.begin(np.arange(number), [0] * number, nothing, texts, np.zeros(number, np.int64))
    lines.stay()
    slots, greedily = torch.arange(number, device=device), Choosing(GenerateSpec(kind="generate"))

    def run() -> Output:
        some = lines.of(slots)
        Copying(width - 1, False).draft(some, some.length, 0)
        places = some.places(some.length, -1, width)
        read, written = some.at(places[:, :-1]), places[:, 1:]
        logits = model.read(some, model.own(read), places[:, 0], _STORED + width)
        found = settle(some, logits, written, read[:, 1:], None, COPIES, greedily)
        return found, found

    again = _recorded(run, device) if records and device.type in RECORDERS else run
    again()
    found: list[float] = []
    while len(found) < _RUNS and (device.type == "cuda" or sum(found) < _SHORT):
        found.append(timed(again, device)[1])
    return float(np.median(found))


def _recorded(run: Run, device: torch.device) -> Callable[[], Any]:
    """``run`` itself where it cannot be recorded: rounds will not be, either."""
    try:
        with LAUNCHING:
            return RECORDERS[device.type](device)(run)[0]
    except Exception as error:
        if out_of_memory(error):
            raise
        return run
