"""One token of each row at the cost of its kernels: passes recorded as CUDA graphs, one for each number of rows.

Such a pass launches hundreds of kernels, most of which take less time than Python takes to launch them; a graph is
launched as one. It holds for one number of rows and one store of keys and values: numbers are rounded up to powers of
two, with idle rows that write where nobody reads, and a graph ends with its batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.packed import PackedPasses
from pipeline.passes.padded import PaddedPasses
from pipeline.passes.transfers import on_device

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Run = Callable[[], torch.Tensor]
Recorded = tuple[Callable[[], Any], torch.Tensor]
"""What does the same once more, and where it writes its output."""
Recorder = Callable[[Run], Recorded]

_WORTH = 2
"""Times that a number of rows has come up before it is recorded, which takes as long as three passes."""

_TOLERANCE = 0.05
"""Most that replayed logits of a row may be off: other numbers of rows round otherwise, by a hundredth."""

_CHUNK = 64
"""Rows compared at once: logits of all in float32 may be larger than all else."""


class Steps:
    """Logits after one more token of each of ``most`` rows or fewer, by ``head`` and ``passes`` with reserved columns.

    Where a pass cannot be recorded it is launched kernel by kernel, from then on by every batch of this model.
    """

    def __init__(self, passes: PackedPasses | PaddedPasses, head: Any, most: int) -> None:
        self._passes: Any = passes
        self._head, self._most = head, max(2, most)
        self._times: dict[int, int] = {}
        self._recorded: dict[int, _Step] = {}
        make = RECORDERS.get(passes.device.type) if passes.records else None
        self._recorder = make(passes.device) if make and getattr(passes.trunk, "contextmill_records", True) else None

    def logits(self, rows: Ints, ids: torch.Tensor, cached: Ints) -> torch.Tensor:
        """``[rows, v]`` after the token ``ids[r]`` of row ``rows[r]``, of which ``cached[r]`` tokens are stored.

        To be used before the next call, which writes to the same place.
        """
        size = min(self._most, 1 << max(1, len(rows) - 1).bit_length())
        self._times[size] = self._times.get(size, 0) + 1
        if size in self._recorded:
            return self._recorded[size].logits(ids, self._passes.places(rows, cached))
        logits: torch.Tensor = self._head(self._passes.step(rows, ids, cached))
        if self._recorder and self._times[size] > _WORTH:
            self._record(self._recorder, size, ids, self._passes.places(rows, cached), logits)
        return logits

    def _record(self, recorder: Recorder, size: int, ids: torch.Tensor, places: Ints, expected: torch.Tensor) -> None:
        """Once more what was just done, recorded. It is not trusted unless it says the same."""
        try:
            with LAUNCHING:
                step = _Step(self._passes, self._head, size, recorder)
            apart = _apart(step.logits(ids, places), expected)
            if apart < _TOLERANCE:
                self._recorded[size] = step
                return
            why = f"a replay is {apart:.2f} off"
        except torch.OutOfMemoryError:  # for this batch alone: the next may leave more room
            self._recorder = None
            log.info("no memory is left to record a pass of %d rows: this batch is launched kernel by kernel", size)
            return
        except Exception as error:  # noqa: BLE001  drivers and kernels fail in ways of their own
            why = " ".join(str(error).split())[:300] or type(error).__name__
        self._recorder, self._passes.trunk.contextmill_records = None, False
        log.warning("single tokens are launched kernel by kernel, at a fraction of the speed: %s", why)


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far the worst row is off."""
    worst = torch.zeros((), device=found.device)
    for some, right in zip(torch.split(found, _CHUNK), torch.split(expected, _CHUNK), strict=True):
        off = (some.float() - right.float()).norm(dim=-1) / right.float().norm(dim=-1)
        worst = torch.maximum(worst, off.max())
    return float(worst)


class _Step:
    """A recorded step of ``size`` rows."""

    def __init__(self, passes: PackedPasses, head: Any, size: int, recorder: Recorder) -> None:
        self._ids = torch.zeros(size, dtype=torch.int64, device=passes.device)
        self._idle = passes.idle(size)
        self._places = on_device(self._idle.copy(), passes.device)
        self._again, self._logits = recorder(lambda: head(passes.step_at(self._ids, self._places)))

    def logits(self, ids: torch.Tensor, places: Ints) -> torch.Tensor:
        rows = len(ids)
        self._ids[:rows] = ids
        self._places.copy_(on_device(np.concatenate([places, self._idle[:, rows:]], 1), ids.device))
        self._again()
        return self._logits[:rows]


class _Graphs:
    """CUDA graphs with one pool of memory for all: what one has written is used before the next runs."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Recorded:
        with torch.cuda.device(self._device):
            graph: Any = torch.cuda.CUDAGraph()
            here, beside = torch.cuda.current_stream(), _beside(self._device)
            beside.wait_stream(here)
            try:
                with torch.cuda.stream(beside):
                    run()  # what a first run makes (kernels, workspaces) cannot be made while recording
                    output = self._capture(graph, run)
            finally:
                here.wait_stream(beside)
        return graph.replay, output

    def _capture(self, graph: Any, run: Run) -> torch.Tensor:
        graph.capture_begin(self._pool, capture_error_mode="thread_local")  # other threads may go on allocating
        try:
            output = run()
            graph.capture_end()
        except BaseException:
            self._abandon(graph)
            raise
        return output

    def _abandon(self, graph: Any) -> None:
        """After a failure. Where it cannot end the graph, torch leaves allocator and generator in the middle of it."""
        try:
            graph.capture_end()
        except RuntimeError:
            index, internals = torch.cuda.current_device(), torch._C
            for end in (internals._cuda_endAllocateToPool, internals._cuda_releasePool):
                with suppress(RuntimeError):
                    end(index, self._pool)
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings, which happen one at a time: memory is kept by stream, and never used by another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": _Graphs}
"""By kind of device."""
