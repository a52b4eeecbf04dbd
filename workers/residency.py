"""What a worker's child process keeps between shards: models on the device, a database pool, the doorbell."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import redis
from celery import current_app
from celery.signals import worker_process_init
from sqlalchemy import Engine

from pipeline.models import ModelPool
from pipeline.storage.sql import open_engine
from schemas.settings import Settings
from workers.doorbell import CeleryDoorbell, broker_client
from workers.processes import owner

STOP_SIGNAL = signal.SIGUSR2  # SIGUSR1 is billiard's soft time limit


LOGLEVEL = "CONTEXTMILL_WORKER_LOGLEVEL"


def set_up_logging(level: str) -> None:
    """One line an event, with time and process. Celery's own set-up is off: it would not reach a spawned child."""
    logging.basicConfig(level=level, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery.redirected").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Desk:
    """One per child process."""

    settings: Settings
    engine: Engine
    models: ModelPool
    doorbell: CeleryDoorbell
    broker: redis.Redis
    owner: str = field(default_factory=owner)
    asked: threading.Event = field(default_factory=threading.Event)
    parent: int = field(default_factory=os.getppid)

    def stopping(self) -> bool:
        """Whether this process should hand its shard back: it was asked to, or its parent is gone."""
        return self.asked.is_set() or os.getppid() != self.parent


_desk: Desk | None = None


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _set_up(**_: Any) -> None:
    """Runs in the child, before its first task. No model is loaded yet: the first shard says which.

    Connected where the child imports it: a spawned process inherits none of its parent's signal handlers.
    """
    global _desk
    set_up_logging(os.environ.get(LOGLEVEL, "INFO"))
    settings = Settings()
    if settings.database_url is None:
        raise ValueError("no database: set CONTEXTMILL_DATABASE_URL")
    engine = open_engine(settings.database_url.get_secret_value())
    models = ModelPool(limit=settings.resident_models)
    made = Desk(settings, engine, models, CeleryDoorbell(current_app), broker_client(current_app))
    signal.signal(STOP_SIGNAL, lambda *_: made.asked.set())
    _desk = made


def desk() -> Desk:
    """This child's desk."""
    if _desk is None:
        raise RuntimeError("this process was not started as a contextmill worker")
    return _desk
