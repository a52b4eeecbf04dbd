"""Token-level compression, window by window, of many texts abreast.

The first pass reads every text as a whole. From then on each pass reads what was left of the window before and the
next window, after keys and values of all that came earlier; losses of what lies further ahead stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.compression.iterative import CACHE
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.decisions import SPLIT, Deciding, Probe, Texts
from pipeline.compression.reference.reading import Reading, most_positions
from pipeline.compression.reference.windows import Window
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.passes.ragged import padded
from pipeline.passes.transfers import on_device

Ints = NDArray[np.int64]

SINKS = 10
"""Tokens after the question whose keys and values stay when a text outgrows the model's window."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A text on its way through the model: at least one token, the first ``start`` of which are the question before."""

    ids: Ints
    start: int
    plan: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Iterating:
    """``size``: tokens in a window. ``contrast``: tokens are valued by what the question adds to their probability."""

    scorer: Scorer
    size: int
    contrast: bool = False
    keep_split: bool = False
    probe: Probe | None = None

    def run(self, streams: Sequence[Stream], passed: Passed) -> list[Ints | Crash]:
        """The places of the tokens that stay of each text, the question before it left out."""
        order = sorted(range(len(streams)), key=lambda place: (-len(streams[place].ids), place))
        ordered = [streams[place] for place in order]
        kept = run_packed(
            self._widths(ordered),
            self.scorer.batch_tokens,
            lambda rows: _Batch(self, [ordered[row] for row in rows], passed).run(),
        )
        found = dict(zip(order, kept, strict=True))
        return [found[place] for place in range(len(streams))]

    def _widths(self, streams: Sequence[Stream]) -> list[int]:
        """What each text takes of a batch's tokens. Not increasing, so that the longest go abreast."""
        most = most_positions(self.scorer)
        held = [
            min(most, one.start + self.size + int(sum(count * ratio for window in one.plan for count, ratio in window)))
            for one in streams
        ]
        share = CACHE[self.scorer.device.type]
        wide = [max(2 * self.size + one.start, -(-need // share)) for one, need in zip(streams, held, strict=True)]
        return [int(width) for width in np.maximum.accumulate(wide[::-1])[::-1]] if wide else []


class _Batch:
    """Texts that go through the model together."""

    def __init__(self, how: Iterating, streams: Sequence[Stream], passed: Passed) -> None:
        self._how, self._plans, self._device = how, [one.plan for one in streams], how.scorer.device
        self._length = np.array([len(one.ids) for one in streams])
        self._start = np.array([one.start for one in streams])
        self._end = np.minimum(how.size + self._start, self._length)
        self._ids = self._to_device(padded(np.concatenate([one.ids for one in streams]), self._length))
        rows, width = len(streams), self._ids.shape[1] + 2
        self._places = torch.arange(width, device=self._device).repeat(rows, 1)
        self._read = Reading(how.scorer, rows, width, passed)
        self._alone: Reading | None = None
        if how.contrast:
            self._alone = Reading(how.scorer, rows, width, passed)
            self._alone_places = self._places + self._to_device(self._start)[:, None]
            self._alone_length = self._length - self._start
        self._splits = _runs_of_splits(self._ids, self._length, width) if how.keep_split else None
        self._popped: list[list[Ints]] = [[] for _ in streams]
        self._crashes: dict[int, Crash] = {}
        self._done = np.zeros(rows, np.bool_)

    @torch.inference_mode()
    def run(self) -> list[Ints | Crash]:
        """What stays of each text."""
        step = 0
        while len(rows := np.flatnonzero(~self._done & (self._end <= self._length))):
            rows = self._read_on(step, rows) if step else self._read_all(rows)
            rows = rows[[not self._out_of_plan(row, step) for row in rows.tolist()]]
            if len(rows):
                self._decide(step, rows)
            step += 1
        places = self._places.cpu().numpy()
        return [self._crashes.get(row) or self._kept(row, places[row]) for row in range(len(places))]

    def _kept(self, row: int, places: Ints) -> Ints:
        whole = np.concatenate([*self._popped[row], places[: self._length[row]]])
        return whole[self._start[row] :]

    def _read_all(self, rows: Ints) -> Ints:
        """The first pass; the rows that have losses."""
        self._read.read_all(self._ids, self._length)
        if self._alone is not None:
            self._crash(rows[self._alone_length <= 0], "nothing is left of the contexts")
            self._alone.read_all(self._now(self._alone_places), np.maximum(1, self._alone_length))
        self._done |= self._read.scored == 0
        return rows[~self._done[rows]]

    def _read_on(self, step: int, rows: Ints) -> Ints:
        """A later pass; the rows that were read."""
        if step > 1:
            for row in rows[self._end[rows] > most_positions(self._how.scorer)].tolist():
                self._make_room(row)
        rows = rows[~self._done[rows]]
        self._done[rows] = self._end[rows] - self._read.cached[rows] == 1  # a token alone has no loss: that ends it
        rows = rows[~self._done[rows]]
        rows = self._readable(self._read, rows, self._end[rows])
        if self._alone is not None:
            rows = self._readable(self._alone, rows, self._end[rows] - self._start[rows])
        if not len(rows):
            return rows
        begin = self._end[rows] - self._how.size
        self._read.read_on(rows, self._now(self._places), self._end[rows], begin)
        if self._alone is not None:
            start = self._start[rows]
            self._alone.read_on(rows, self._now(self._alone_places), self._end[rows] - start, begin - start)
        return rows

    def _readable(self, reading: Reading, rows: Ints, ends: Ints) -> Ints:
        """The rows whose pass fits the model's window and meets the losses there are; the library fails on others."""
        cached, scored = reading.cached[rows], reading.scored[rows]
        fits = ends - cached <= most_positions(self._how.scorer)
        meets = (ends - self._how.size >= cached) & (scored >= cached) & (ends > cached)
        self._crash(rows[~(fits & meets)], "a window that the model has no room for")
        return rows[fits & meets]

    def _make_room(self, row: int) -> None:
        """Past the model's window the first tokens are set aside, and as many keys and values behind the sinks go.

        Positions and losses are not moved along: the library has it so.
        """
        most = most_positions(self._how.scorer)
        over = int(self._end[row]) - most
        sinks = min(SINKS + int(self._start[row]), most)
        self._popped[row].append(self._places[row, :over].cpu().numpy().copy())  # on the CPU it is a view
        self._drop(self._read, row, sinks, over)
        self._places[row] = self._places[row].roll(-over)
        if self._splits is not None:
            self._splits[row] = self._splits[row].roll(-over)
        self._end[row] -= over
        self._length[row] -= over
        if self._alone is not None:
            self._drop(self._alone, row, min(sinks, int(self._alone.cached[row]) - over), over)
            self._alone_places[row] = self._alone_places[row].roll(-over)
            self._alone_length[row] -= over

    def _drop(self, reading: Reading, row: int, first: int, count: int) -> None:
        held = int(reading.cached[row])
        if first < 0 or first + count > held:
            self._crash(np.array([row]), "too few keys and values to drop some")
            return
        reading.passes.drop(row, first, first + count, held)
        reading.cached[row] = held - count

    def _out_of_plan(self, row: int, step: int) -> bool:
        if out := step >= len(self._plans[row]):
            self._crash(np.array([row]), "the text has more windows than were planned")
        return out

    def _decide(self, step: int, rows: Ints) -> None:
        """All of a window's decisions; one look at the device for all rows."""
        which, deciding = self._to_device(rows), self._deciding(rows)
        windows = [self._plans[row][step] for row in rows.tolist()]
        for turn in range(max(map(len, windows))):
            now = [window[turn] if turn < len(window) else None for window in windows]
            count = self._to_device(np.array([one[0] if one else 0 for one in now]))
            ratio = self._to_device(np.array([one[1] if one else 1.0 for one in now]))
            active = self._to_device(np.array([one is not None for one in now]))
            deciding.cut(self._how.size, count, ratio, active, self._how.probe)
        text, alone, wide = deciding.text, deciding.alone, deciding.text.places.shape[1]
        self._places[which, :wide], self._read.loss[which, :wide] = text.places, text.loss
        found = [deciding.end, deciding.crashed.long(), text.length, text.scored]
        if alone is not None and self._alone is not None:
            self._alone_places[which, :wide], self._alone.loss[which, :wide] = alone.places, alone.loss
            found += [alone.length, alone.scored]
        if self._splits is not None and deciding.splits is not None:
            self._splits[which, :wide] = deciding.splits
        numbers = torch.stack(found).cpu().numpy()
        self._end[rows], self._length[rows], self._read.scored[rows] = numbers[0], numbers[2], numbers[3]
        if self._alone is not None:
            self._alone_length[rows], self._alone.scored[rows] = numbers[4], numbers[5]
        self._crash(rows[numbers[1] > 0], "no losses are left to take a threshold from")

    def _deciding(self, rows: Ints) -> Deciding:
        which = self._to_device(rows)
        wide = min(self._places.shape[1], 2 + int(max(self._length[rows].max(), self._read.scored[rows].max())))
        text = Texts(
            self._places[which, :wide], self._to_device(self._length[rows]),
            self._read.loss[which, :wide], self._to_device(self._read.scored[rows]),
        )  # fmt: skip
        alone = None
        if self._alone is not None:
            alone = Texts(
                self._alone_places[which, :wide], self._to_device(self._alone_length[rows]),
                self._alone.loss[which, :wide], self._to_device(self._alone.scored[rows]),
            )  # fmt: skip
        splits = None if self._splits is None else self._splits[which, :wide]
        crashed = torch.zeros(len(rows), dtype=torch.bool, device=self._device)
        start, end = self._to_device(self._start[rows]), self._to_device(self._end[rows])
        return Deciding(text, alone, splits, start, end, crashed)

    def _now(self, places: torch.Tensor) -> torch.Tensor:
        """The tokens at these places."""
        return self._ids.gather(1, places.clamp(max=self._ids.shape[1] - 1))

    def _crash(self, rows: Ints, why: str) -> None:
        self._crashes.update((row, Crash(why)) for row in rows.tolist())
        self._done[rows] = True

    def _to_device(self, numbers: NDArray[Any]) -> torch.Tensor:
        return on_device(numbers, self._device)


def _runs_of_splits(ids: torch.Tensor, length: Ints, width: int) -> torch.Tensor:
    """1 for a token ``SPLIT``, 2 for one beside another; ``[rows, width]``."""
    split = torch.nn.functional.pad(ids == SPLIT, (1, 1 + width - ids.shape[1]))
    split[:, 1:-1] &= torch.arange(width, device=ids.device) < on_device(length, ids.device)[:, None]
    beside = split[:, :-2] | split[:, 2:]
    return split[:, 1:-1] * (1 + beside.int())
