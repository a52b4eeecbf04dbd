"""The workers of a command: kept from one of its jobs to the next where both need the same model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import interrupts
from pipeline.cli.shared import err

if TYPE_CHECKING:
    from types import TracebackType

    from schemas.settings import Settings
    from workers.embedded import Embedded


@dataclass
class Fleet:
    """A context manager: inside it, ``started`` gives ``workers`` workers of our own.

    While they are there, the first signal raises ``Interrupted``, and they are stopped in order.
    """

    settings: Settings
    workers: int
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)
    _embedded: Embedded | None = None
    _for: tuple[str, str | None] = ("", None)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._embedded = None
        self._open.__exit__(kind, error, at)

    def started(self, output: str, model: str | None) -> Embedded:
        """Workers whose logs go to ``output``, and their server where none is set: those that are there, if they were
        started for the same ``model``. Another one would have to find room beside it; None: they are for one job alone.
        """
        from workers.embedded import Embedded

        if self._embedded is None or model is None or self._for != (output, model):
            self.stop()
            log_dir = Path("logs") if output.startswith("s3:") else Path(output) / "logs"
            self._open.enter_context(interrupts.in_order())
            self._embedded = self._open.enter_context(Embedded(self.settings, self.workers, log_dir))
            self._open.enter_context(_stopping())
            self._for = output, model
        return self._embedded

    def stop(self) -> None:
        """Nobody works any more; ``started`` begins anew."""
        self._embedded = None
        self._open.close()


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Says to someone at a terminal why nothing happens after Ctrl-C; a second one does not wait."""
    try:
        yield
    except interrupts.Interrupted:
        if err.is_terminal:
            err.print("stopping the workers, which hand back what they hold: up to 15 s")
        raise
