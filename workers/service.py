"""A worker: Celery's parent process with the reaper beside it, and its one child. What `contextmill worker` runs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from billiard.process import active_children
from celery.apps.worker import Worker
from celery.signals import worker_ready, worker_shutdown
from celery.worker import state
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.storage.reaping import owners
from pipeline.storage.schema import check_schema
from pipeline.storage.sql import open_engine
from schemas.settings import Settings
from workers import transport
from workers.app import make_app, queue_names
from workers.doorbell import broker_client
from workers.orphans import watch_owner
from workers.processes import owner
from workers.reaper import Reaper
from workers.residency import LOGLEVEL, STOP_SIGNAL, set_up_logging

# This long before its grace ends, or for half of it, a child still busy hands back: calls in flight may end till then.
HAND_BACK_SECONDS = 25.0
LAST_WORDS_SECONDS = 0.5  # for the child to ring for what comes after its shard
HANDED_BACK_SECONDS = 2.5  # for one that is stopped in the middle, on a machine that may be busy, to ring for the rest


class WorkerEndedError(RuntimeError):
    """Celery gave up, as it does where its child dies before it was ready. Not an orderly end: exit code 1."""


def serve(settings: Settings, name: str, queues: list[str] | None = None, loglevel: str = "INFO") -> None:
    """Work until told to stop. SIGTERM: the shard in hand is finished, or handed back before the grace period ends.

    Raises ``ValueError`` for missing settings, ``DatabaseError`` for a schema that does not fit, ``WorkerEndedError``.
    """
    if settings.database_url is None:
        raise ValueError("no database: set CONTEXTMILL_DATABASE_URL")
    set_up_logging(loglevel)
    os.environ[LOGLEVEL] = loglevel  # for the child, which inherits the environment and nothing else
    transport.install()
    app = make_app(settings)
    engine = open_engine(settings.database_url.get_secret_value())
    check_schema(engine)
    app.Worker = app.subclass_with_self(_graceful(engine, settings.soft_shutdown_seconds))
    reaper = Reaper(engine, app, settings)
    watch_owner(broker_client(app))

    def on_ready(**_: Any) -> None:
        reaper.start()

    codes: list[int | None] = []  # ``worker_main`` keeps the exit code to itself

    def on_left(sender: Any, **_: Any) -> None:
        codes.append(sender.exitcode)
        reaper.stop()

    worker_ready.connect(on_ready, weak=False)
    worker_shutdown.connect(on_left, weak=False)
    # Gossip and mingle talk to other workers over the broker, for nothing we use, and have hung reconnections.
    options = ["--without-gossip", "--without-mingle", "--loglevel", loglevel, "-n", f"{name}@%h"]
    app.worker_main(["worker", "-Q", ",".join(queues or queue_names()), *options])
    if any(codes) and not state.should_terminate:
        raise WorkerEndedError("this worker ended by itself, for the reason logged above: start it again")


def _graceful(engine: Engine, grace: float) -> type[Any]:
    """Celery's worker with a grace period that ends as soon as its child holds no shard.

    Celery's own is one sleep in the signal handler: it lasts to its end even where nothing is left to wait for, and
    its signal ``worker_shutting_down`` is sent only afterwards.
    """

    class Graceful(Worker):  # type: ignore[misc]
        def wait_for_soft_shutdown(self) -> None:
            if not state.reserved_requests:  # nothing to end: a child that is asked to takes a second for it
                _signal_children(signal.SIGKILL)
                return
            began, asked = time.monotonic(), False
            while state.active_requests and _busy(engine) and (waited := time.monotonic() - began) < grace:
                if not asked and waited >= grace - min(HAND_BACK_SECONDS, grace / 2):
                    _signal_children(STOP_SIGNAL)
                    asked = True
                time.sleep(0.1)
            time.sleep(HANDED_BACK_SECONDS if asked else LAST_WORDS_SECONDS)

    return Graceful


def _busy(engine: Engine) -> bool:
    """Whether a child of this process holds a shard; a database that does not say so may be hiding one."""
    ours = {owner(child.pid) for child in active_children()}
    try:
        return not ours.isdisjoint(owners(engine))
    except SQLAlchemyError:
        return bool(ours)


def _signal_children(number: int) -> None:
    for child in active_children():
        os.kill(child.pid, number)
