"""A thread that keeps a claimed shard ours while the stage works on it, and learns when it should stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.storage import shards
from pipeline.storage.shards import Claim

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0  # how often progress is written for those who watch


class Lease:
    """Renews ``claim`` until the block is left. ``stopping()`` turns true when the shard is lost or must be given back.

    ``beat`` is called with each renewal (the broker's own timeout is renewed there), ``moved`` with each progress:
    stuck work would be renewed for ever, so somebody has to look whether it still moves. A database that is away is
    tried again: whether the lease was lost meanwhile shows at the commit, which is fenced.
    """

    def __init__(
        self,
        engine: Engine,
        claim: Claim,
        *,
        lease_seconds: float,
        renew_seconds: float,
        beat: Callable[[], None] = lambda: None,
        moved: Callable[[], None] = lambda: None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine, self._claim, self._beat, self._asked = engine, claim, beat, asked_to_stop
        self._moved = moved
        self._lease_seconds, self._renew_seconds = lease_seconds, renew_seconds
        self._documents = self._tokens = 0
        self._doing: str | None = None
        self._counting = threading.Lock()
        self._written: tuple[int, int, str | None] = (0, 0, None)
        self._lost = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()

    @property
    def done(self) -> tuple[int, int]:
        """Documents and tokens finished so far."""
        return self._documents, self._tokens

    @property
    def _state(self) -> tuple[int, int, str | None]:
        return *self.done, self._doing

    def stopping(self) -> bool:
        """Whether the stage should stop at the next chance: asked to, the shard no longer ours, its job not active."""
        return self._lost or self._asked()

    def progress(self, documents: int, tokens: int) -> None:
        """Count what the stage finished since the last call, which may be nothing yet. From any thread."""
        with self._counting:  # stages work in threads of their own, and += alone would lose counts
            self._documents += documents
            self._tokens += tokens
            self._moved()

    def say(self, doing: str) -> None:
        """What the stage is doing, for those who watch."""
        self._doing = doing

    def _keep(self) -> None:
        pause = min(self._renew_seconds, PROGRESS_SECONDS)
        waited = 0.0
        while not self._left.wait(pause):
            waited += pause
            if waited >= self._renew_seconds or self._state != self._written:
                waited = 0.0
                self._renew()

    def _renew(self) -> None:
        state = self._state
        try:
            held = shards.renew(self._engine, self._claim, self._lease_seconds, *state)
            self._beat()
        except (SQLAlchemyError, OSError) as error:  # any of them: a thread that ended would lose the shard for sure
            log.warning("lease of %s not renewed, trying again: %s", self._claim.shard_id, error)
            return
        self._written = state
        self._lost = self._lost or not held
