"""Ends work that stands still. Work that moves may take as long as it needs: a long document is no fault of anyone."""

from __future__ import annotations

import faulthandler
import signal
import time
from types import TracebackType
from typing import Any, NoReturn

from pipeline.work import Overdue

STDERR = 2


class Watchdog:
    """``moved`` is the sign of life of the block inside. Without one for ``soft`` seconds the main thread gets
    ``Overdue``; for ``hard`` seconds, and the process ends, having said where each thread stood. Main thread only.

    The hard end is no signal handler: these are Python, and a native call that never returns lets no Python run.
    """

    def __init__(self, soft: float, hard: float) -> None:
        self._soft, self._hard = soft, hard
        self._often = min(1.0, soft / 10)  # each setting of the hard end costs a thread
        self._set = 0.0

    def __enter__(self) -> Watchdog:
        signal.signal(signal.SIGALRM, _overdue)
        self._wind()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    def moved(self) -> None:
        """Start both clocks anew. From any thread."""
        if time.monotonic() - self._set >= self._often:
            self._wind()

    def _wind(self) -> None:
        self._set = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self._soft)
        faulthandler.dump_traceback_later(self._hard, exit=True, file=STDERR)


def _overdue(*_: Any) -> NoReturn:
    raise Overdue("no progress for longer than CONTEXTMILL_SOFT_TIME_LIMIT allows")
