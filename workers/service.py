"""A worker: Celery's parent process with the reaper beside it, and its one child. What `contextmill worker` runs."""

from __future__ import annotations

import os
import threading
from typing import Any

from billiard.process import active_children
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down

from pipeline.storage.schema import check_schema
from pipeline.storage.sql import open_engine
from schemas.settings import Settings
from workers.app import make_app, queue_names
from workers.reaper import Reaper
from workers.residency import LOGLEVEL, STOP_SIGNAL, set_up_logging

HAND_BACK_SECONDS = 10.0  # this long before its grace ends, a child still busy is asked to hand its shard back


def serve(settings: Settings, name: str, queues: list[str] | None = None, loglevel: str = "INFO") -> None:
    """Work until told to stop. SIGTERM: the shard in hand is finished, or handed back before the grace period ends.

    Raises ``ValueError`` for missing settings, ``DatabaseError`` for a schema that does not fit.
    """
    if settings.database_url is None:
        raise ValueError("no database: set CONTEXTMILL_DATABASE_URL")
    set_up_logging(loglevel)
    os.environ[LOGLEVEL] = loglevel  # for the child, which inherits the environment and nothing else
    app = make_app(settings)
    engine = open_engine(settings.database_url.get_secret_value())
    check_schema(engine)
    reaper = Reaper(engine, app, settings)
    asking = threading.Timer(max(0.0, settings.soft_shutdown_seconds - HAND_BACK_SECONDS), _ask_children)
    asking.daemon = True

    def on_ready(**_: Any) -> None:
        reaper.start()

    def on_leaving(**_: Any) -> None:
        asking.start()

    def on_left(**_: Any) -> None:
        reaper.stop()

    worker_ready.connect(on_ready, weak=False)
    worker_shutting_down.connect(on_leaving, weak=False)
    worker_shutdown.connect(on_left, weak=False)
    # Gossip and mingle talk to other workers over the broker, for nothing we use, and have hung reconnections.
    options = ["--without-gossip", "--without-mingle", "--loglevel", loglevel, "-n", f"{name}@%h"]
    app.worker_main(["worker", "-Q", ",".join(queues or queue_names()), *options])


def _ask_children() -> None:
    for child in active_children():
        os.kill(child.pid, STOP_SIGNAL)
