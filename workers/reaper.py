"""A thread in every worker parent: finds what nobody else would notice, and rings again. Needs no beat process."""

from __future__ import annotations

import logging
import threading

import redis
from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.producer import DoorbellSilentError
from pipeline.storage.reaping import bury, count_rung, expire, lead, leader, open_publications, owners, resign
from schemas.settings import Settings
from workers.doorbell import CeleryDoorbell, backlog, broker_client, ring_all
from workers.processes import dead_here, owner

log = logging.getLogger(__name__)


TASK = "reaper"  # of which there is one leader a database


class Reaper:
    """Runs every ``reap_seconds`` until ``stop``; of several parents on one database, one at a time does the work."""

    def __init__(self, engine: Engine, app: Celery, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._doorbell, self._client = CeleryDoorbell(app), broker_client(app)
        self._short_passes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin at once: a worker that starts after a crash has things to find."""
        self._thread.start()

    def stop(self) -> None:
        """End, then take back what dead children of this host still hold, and leave the lead to others."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._attempt(self._release_dead)
        self._attempt(lambda: resign(self._engine, TASK, owner()))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._attempt(self.reap)
            self._stop.wait(self._settings.reap_seconds)

    def _attempt(self, action: object) -> None:
        try:
            action()  # type: ignore[operator]
        except (SQLAlchemyError, redis.RedisError, DoorbellSilentError, OSError) as error:
            log.warning("reaper: %s; trying again", " ".join(str(error).split())[:200])

    def reap(self) -> None:
        """One pass."""
        self._release_dead()
        if not lead(self._engine, TASK, owner(), 3 * self._settings.reap_seconds):
            return
        expire(self._engine)
        bury(self._engine, self._settings.max_attempts)
        open_publications(self._engine, self._settings.max_attempts)
        rung = ring_all(self._engine, self._doorbell, lost=self._forgotten)
        if rung:
            log.info("rang for %d shards", rung)

    def _release_dead(self) -> None:
        if gone := dead_here(owners(self._engine)):
            count = expire(self._engine, gone)
            log.warning("took back %d shards of processes that died", count)
        for dead in dead_here(filter(None, [leader(self._engine, TASK)])):
            resign(self._engine, TASK, dead)

    def _forgotten(self) -> bool:
        """Whether the broker has fewer messages than shards wait for one, twice in a row: some were lost there."""
        short = backlog(self._client) < count_rung(self._engine)
        self._short_passes = self._short_passes + 1 if short else 0
        return self._short_passes >= 2
