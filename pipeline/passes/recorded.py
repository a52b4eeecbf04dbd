"""One token of each row at the cost of its kernels: passes recorded as CUDA graphs, one for each number of rows.

Such a pass launches hundreds of kernels, most of which take less time than Python takes to launch them; a graph is
launched as one. It holds for one number of rows and one store of keys and values: numbers are rounded up to powers of
two, with idle rows that write where nobody reads, and a graph ends with its batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.packed import PackedPasses
from pipeline.passes.transfers import on_device

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Run = Callable[[], torch.Tensor]
Recorded = tuple[Callable[[], None], torch.Tensor]
"""What does the same once more, and where it writes its output."""

_WORTH = 2
"""Times that a number of rows has come up before it is recorded, which takes as long as three passes."""

_TOLERANCE = 0.05
"""Most that replayed logits may be off: other numbers of rows round otherwise, by a hundredth."""


class Steps:
    """Logits after one more token of each row, by ``head`` and ``passes`` whose columns are reserved for ``most`` rows.

    Where a pass cannot be recorded it is launched kernel by kernel.
    """

    def __init__(self, passes: PackedPasses, head: Any, most: int) -> None:
        self._passes, self._head, self._most = passes, head, max(2, most)
        self._times: dict[int, int] = {}
        self._recorded: dict[int, _Step] = {}
        self._records = True

    def logits(self, rows: Ints, ids: torch.Tensor, cached: Ints) -> torch.Tensor:
        """``[rows, v]`` after the token ``ids[r]`` of row ``rows[r]``, of which ``cached[r]`` tokens are stored.

        To be used before the next call, which writes to the same place.
        """
        size = min(self._most, 1 << max(1, len(rows) - 1).bit_length())
        self._times[size] = self._times.get(size, 0) + 1
        if size in self._recorded:
            return self._recorded[size].logits(ids, self._passes.places(rows, cached))
        logits: torch.Tensor = self._head(self._passes.step(rows, ids, cached))
        if self._records and self._times[size] > _WORTH:
            self._record(size, ids, self._passes.places(rows, cached), logits)
        return logits

    def _record(self, size: int, ids: torch.Tensor, places: Ints, expected: torch.Tensor) -> None:
        """Once more what was just done, recorded. It is not trusted unless it says the same."""
        if ids.device.type not in RECORDERS:
            self._records = False
            return
        try:
            with LAUNCHING:
                step = _Step(self._passes, self._head, size, ids.device)
            apart = float((step.logits(ids, places).float() - expected.float()).norm() / expected.float().norm())
            why = "" if apart < _TOLERANCE else f"a replay is {apart:.2f} off"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  drivers and kernels fail in ways of their own
            why = " ".join(str(error).split())[:300] or type(error).__name__
        if why:
            self._records = False
            log.warning("single tokens are launched kernel by kernel, at a fraction of the speed: %s", why)
        else:
            self._recorded[size] = step


class _Step:
    """A recorded step of ``size`` rows."""

    def __init__(self, passes: PackedPasses, head: Any, size: int, device: torch.device) -> None:
        self._ids = torch.zeros(size, dtype=torch.int64, device=device)
        self._idle = passes.idle(size)
        self._places = on_device(self._idle, device)
        self._again, self._logits = RECORDERS[device.type](
            lambda: head(passes.step_at(self._ids, self._places)), device
        )

    def logits(self, ids: torch.Tensor, places: Ints) -> torch.Tensor:
        rows = len(ids)
        self._ids[:rows] = ids
        self._places.copy_(on_device(np.concatenate([places, self._idle[:, rows:]], 1), ids.device))
        self._again()
        return self._logits[:rows]


def _graph(run: Run, device: torch.device) -> Recorded:
    with torch.cuda.device(device):
        graph, here, beside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            run()  # what a first run makes (kernels, workspaces) cannot be made while recording
            graph.capture_begin(capture_error_mode="thread_local")  # other threads may go on allocating
            try:
                output = run()
            finally:
                graph.capture_end()
        here.wait_stream(beside)
    return graph.replay, output


RECORDERS: dict[str, Callable[[Run, torch.device], Recorded]] = {"cuda": _graph}
"""By kind of device."""
