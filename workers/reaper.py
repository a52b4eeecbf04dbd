"""A thread in every worker parent: finds what nobody else would notice, and rings again. Needs no beat process."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

import redis
from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.producer import DoorbellSilentError
from pipeline.storage.reaping import (
    Bell,
    bury,
    expire,
    lead,
    leader,
    open_publications,
    owed,
    owners,
    resign,
    unring_oldest,
)
from schemas.settings import Settings
from workers.doorbell import CeleryDoorbell, broker_client, held, ring_due
from workers.processes import dead_here, owner

log = logging.getLogger(__name__)


TASK = "reaper"  # of which there is one leader a database


class Reaper:
    """Runs every ``reap_seconds`` until ``stop``; of several parents on one database, one at a time does the work."""

    def __init__(self, engine: Engine, app: Celery, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._doorbell, self._client = CeleryDoorbell(app), broker_client(app)
        self._missing = Counter[Bell]()
        self._expire_from = 0.0
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
            if isinstance(error, SQLAlchemyError):
                self._wait_for_renewals()
            log.warning("reaper: %s; trying again", " ".join(str(error).split())[:200])

    def reap(self) -> None:
        """One pass."""
        self._release_dead()
        asked = time.monotonic()
        if not self._leads():
            self._missing.clear()  # two looks with another leader between them are no two in a row
            return
        if time.monotonic() - asked > self._settings.renew_seconds:
            self._wait_for_renewals()
        if time.monotonic() >= self._expire_from:
            expire(self._engine)
        bury(self._engine, self._settings.max_attempts)
        open_publications(self._engine, self._settings.max_attempts)
        self._unring_lost()
        while not self._stop.is_set() and self._leads() and (rung := ring_due(self._engine, self._doorbell)):
            log.info("rang for %d shards", rung)

    def _leads(self) -> bool:
        return lead(self._engine, TASK, owner(), 3 * self._settings.reap_seconds)

    def _wait_for_renewals(self) -> None:
        """A database that was away or locked kept the living from renewing their leases, too: they get a moment."""
        self._expire_from = time.monotonic() + 2 * self._settings.renew_seconds

    def _release_dead(self) -> None:
        if gone := dead_here(owners(self._engine)):
            count = expire(self._engine, gone)
            log.warning("took back %d shards of processes that died", count)
        for dead in dead_here(filter(None, [leader(self._engine, TASK)])):
            resign(self._engine, TASK, dead)

    def _unring_lost(self) -> None:
        """Where a queue's shards outnumber its messages, twice in a row, some were lost: ring for as many again.

        Which ones, nobody knows. Those rung for longest ago, for a queue is first in, first out: before long the lost
        are the oldest. Never more than are missing, for a guess that was wrong costs a message without effect.
        """
        should = owed(self._engine)  # counted first: a shard rung for meanwhile then hides a loss, and feigns none
        missing = should - held(self._client, self._settings.lease_seconds)
        for bell, number in (missing & self._missing).items():
            # Where shards go by fast, both looks may have been wrong: no warning.
            log.info("%d messages for %s of %s priority seem lost: ringing for as many again", number, *bell)
            unring_oldest(self._engine, bell, number)
        self._missing = missing
