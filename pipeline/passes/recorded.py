"""Short passes at the cost of their kernels: recorded as CUDA graphs, one for each number of rows and shape.

Such a pass launches hundreds of kernels, most of which take less time than Python takes to launch them; a graph is
launched as one. All that changes from one pass to the next lies on the device, where a row has a slot. Numbers of rows
are rounded up to powers of two, with idle rows in a slot where nobody reads.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import out_of_memory
from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.transfers import on_device

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Output = tuple[torch.Tensor, torch.Tensor]
"""Of each slot: what came of it, and the logits ``[rows, v]`` of the first token that it was given to read."""
Run = Callable[[], Any]
Recorded = tuple[Callable[[], Any], Any]
"""What does the same once more, and where it writes its output."""
Recorder = Callable[[Run], Recorded]

_WORTH = 2
"""Times that a number of rows has come up before it is recorded, which takes as long as three passes."""

_SERVED = 256
"""The same where twice as many rows are recorded, which serves them as well, with idle rows; fewer the more rows these
are. Batches that end row by row would record every power of two for a few steps each."""

_TOLERANCE = 0.05
"""Most that replayed logits of a row may be off: other numbers of rows round otherwise, by a hundredth."""

_CHUNK = 64
"""Rows compared at once: logits of all in float32 may be larger than all else."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is done at each step: ``step(slots, shape, most)``, where ``shape`` is all else that tells steps apart.

    It changes the ``state`` of its slots but ``idle``, and done again from the same state it does the same. It is done
    for ``least`` rows or more."""

    step: Callable[[torch.Tensor, Any, int], Output]
    state: Sequence[torch.Tensor]
    idle: int
    least: int = 1

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.state[0].device


class Steps:
    """``work`` on any slots; recorded where ``records`` and it can be.

    Where it cannot it is launched kernel by kernel; ``refused``, which is kept with the model, has the ``kind`` of work
    for which no later batch need try again.
    """

    def __init__(self, work: Work, records: bool, refused: set[Hashable], kind: Hashable) -> None:
        self._work, self._records, self._refused, self._kind = work, records, refused, kind
        self._times: dict[tuple[int, Hashable], int] = {}
        self._done: dict[int, int] = {}
        self._recorded: dict[tuple[int, Hashable], _Step] = {}
        self.recordings = 0
        """So many were tried."""
        self.begin()

    def begin(self) -> None:
        """A new batch: where memory was short, it may leave more."""
        make = RECORDERS.get(self._work.device.type) if self._records and self._kind not in self._refused else None
        self._recorder = make(self._work.device) if make else None

    def ready(self, rows: int, shape: Hashable) -> bool:
        """Whether such a step need not be recorded first, or never will be."""
        return self._recorder is None or self._serving(rows, shape) is not None

    def done(self, rows: int) -> int:
        """Steps of about as many rows so far, of any shape."""
        return self._done.get(self._size(rows), 0)

    def __call__(self, slots: Ints, shape: Hashable, most: int, at_once: bool = False) -> torch.Tensor:
        """What came of each of these slots, none of which has more than ``most`` columns afterwards. To be used before
        the next call, which writes to the same place. ``at_once``: it will come up often, and is recorded right away
        if it is to be recorded."""
        key = self._size(len(slots)), shape
        times = self._times[key] = self._times.get(key, 0) + 1
        self._done[key[0]] = self._done.get(key[0], 0) + 1
        if key in self._recorded:
            return self._recorded[key](slots)[0]
        serving, worth = self._serving(len(slots), shape), 0 if at_once else _WORTH
        if serving:
            worth = _SERVED * key[0] // (serving - key[0])
        if serving and not (self._recorder and times > worth):
            return self._recorded[serving, shape](slots)[0]
        if self._recorder and times > worth:
            return self._record(self._recorder, key, slots, most)
        return self._launched(slots, shape, most)[0]

    def _size(self, rows: int) -> int:
        """Rows of a recording: the next power of two."""
        return 1 << (max(rows, self._work.least) - 1).bit_length()

    def _serving(self, rows: int, shape: Hashable) -> int | None:
        """Rows of the smallest recording that has room for so many."""
        return min((size for size, other in self._recorded if other == shape and size >= rows), default=None)

    def _launched(self, slots: Ints, shape: Hashable, most: int) -> Output:
        filled = np.pad(slots, (0, max(0, self._work.least - len(slots))), constant_values=self._work.idle)
        found, logits = self._work.step(on_device(filled, self._work.device), shape, most)
        return found[: len(slots)], logits[: len(slots)]

    def _record(self, recorder: Recorder, key: tuple[int, Hashable], slots: Ints, most: int) -> torch.Tensor:
        """Recorded, replayed, and then launched: what was launched last is what counts, and what stays written.

        A recording is not trusted unless its replay said the same."""
        self.recordings += 1
        before, replayed, why = [one.clone() for one in self._work.state], None, ""
        try:
            with LAUNCHING:
                step = _Step(self._work, recorder, *key)
            replayed = step(slots)[1].clone()
        except Exception as error:  # noqa: BLE001  drivers and kernels fail in ways of their own
            if out_of_memory(error):  # for this batch alone: the next may leave more room
                self._recorder = None
                log.info("no memory is left to record passes of %d rows: the batch goes kernel by kernel", key[0])
            else:
                why = " ".join(str(error).split())[:300] or type(error).__name__
        for one, old in zip(self._work.state, before, strict=True):
            one.copy_(old)
        found, logits = self._launched(slots, key[1], most)
        if replayed is not None:
            apart = _apart(replayed, logits)
            why = "" if apart < _TOLERANCE else f"a replay is {apart:.2f} off"
        if why:
            self._recorder = None
            self._refused.add(self._kind)
            log.warning(
                "passes of %d rows, %s, are launched kernel by kernel, at a fraction of the speed: %s", *key, why
            )  # fmt: skip
        elif replayed is not None:
            step.forget_logits()
            self._recorded[key] = step
        return found


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far the worst row is off."""
    worst = torch.zeros((), device=found.device)
    for some, right in zip(torch.split(found, _CHUNK), torch.split(expected, _CHUNK), strict=True):
        off = (some.float() - right.float()).norm(dim=-1) / right.float().norm(dim=-1)
        worst = torch.maximum(worst, off.max())
    return float(worst)


class _Step:
    """A recorded step of ``size`` rows and this ``shape``."""

    def __init__(self, work: Work, recorder: Recorder, size: int, shape: Hashable) -> None:
        self._idle = work.idle
        self._slots = torch.full((size,), work.idle, device=work.device)
        self._holds: list[int] = []
        self._again, (self._found, self._logits) = recorder(
            lambda: work.step(self._slots, shape, 0)  # what records needs no ``most``
        )

    def __call__(self, slots: Ints) -> Output:
        if self._holds != slots.tolist():
            self._holds = slots.tolist()
            filled = np.pad(slots, (0, len(self._slots) - len(slots)), constant_values=self._idle)
            self._slots.copy_(on_device(filled, self._slots.device))
        self._again()
        return self._found[: len(slots)], self._logits[: len(slots)]

    def forget_logits(self) -> None:
        """They are as large as all else, and other recordings may have their room."""
        self._logits = self._found


class Graphs:
    """CUDA graphs with one pool of memory for all of a process: what one has written is used before the next runs, as
    one batch is decoded at a time. A pool for each batch would be kept by the allocator, but for nobody's use. With a
    ``pool`` of their own (``torch.cuda.graph_pool_handle``) its memory is given back with the last of them."""

    def __init__(self, device: torch.device, pool: Any = None) -> None:
        self._device, self._pool = device, pool

    def __call__(self, run: Run) -> Recorded:
        """Record what it does, once it was done."""
        with torch.cuda.device(self._device):
            pool = self._pool or _holder(self._device).pool()
            graph: Any = torch.cuda.CUDAGraph(keep_graph=True)  # made ready by its first replay: that may fail, too
            here, beside = torch.cuda.current_stream(), _beside(self._device)
            beside.wait_stream(here)
            try:
                with torch.cuda.stream(beside):
                    run()  # what a first run makes (kernels, workspaces) cannot be made while recording
                    if self._pool:  # nor can what it leaves behind be given back
                        torch.cuda.empty_cache()
                    output = self._capture(graph, pool, run)
            finally:
                here.wait_stream(beside)
        return graph.replay, output

    def _capture(self, graph: Any, pool: Any, run: Run) -> Any:
        graph.capture_begin(pool, capture_error_mode="thread_local")  # other threads may go on allocating
        try:
            output = run()
            graph.capture_end()
        except BaseException:
            self._abandon(graph, pool)
            raise
        return output

    def _abandon(self, graph: Any, pool: Any) -> None:
        """After a failure. Where it cannot end the graph, torch leaves allocators and generator in the middle of it."""
        try:
            graph.capture_end()
        except RuntimeError:
            if not self._pool:
                _holder.cache_clear()  # the allocator of pinned memory cannot be told: it refuses this pool from now on
            index = torch.cuda.current_device()
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, pool)
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())


@functools.cache
def _holder(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of next to nothing that stays, and the pool with it: torch refuses one whose last graph is gone."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(_beside(device)):
        torch.zeros(1, device=device)  # loads its kernel
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        graph.capture_end()
    return graph


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings, which happen one at a time: memory is kept by stream, and never used by another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": Graphs}
"""By kind of device."""
