"""Plain Celery, one task per document with the document in its message: the peer of ``cpu_overhead.py``.

    python benchmarks/celery_peer.py {worker|publish} {careful|default} [--documents N] [--characters C]

The broker is that of ``CONTEXTMILL_BROKER_URL``. *careful* takes contextmill's own settings (``workers/app.py``: late
acknowledgement, nothing fetched ahead); *default* is Celery as it comes, where a killed worker loses its task. A worker
prints the number of tasks it has done when it is told to stop.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery, shared_task
from celery.signals import worker_shutdown
from celery.worker import state
from kombu import Queue

from schemas.settings import Settings
from workers.app import make_app

MODULE = Path(__file__).stem  # imported once more by the worker's child
TASK, QUEUE = "peer.copy", "peer"


@shared_task(name=TASK)  # type: ignore[untyped-decorator]
def copy(document: dict[str, Any]) -> None:
    del document


def peer(settings: str) -> Celery:
    """The app, with its one task that does nothing."""
    if settings == "careful":
        app = make_app(Settings())
        app.conf.update(include=[MODULE], task_queues=[Queue(QUEUE, routing_key=QUEUE)], task_default_queue=QUEUE)
    else:
        app = Celery("peer", broker=os.environ["CONTEXTMILL_BROKER_URL"], include=[MODULE])
        app.conf.update(task_default_queue=QUEUE, task_ignore_result=True)
    return app


def serve(app: Celery) -> None:
    def on_left(**_: Any) -> None:
        print(state.total_count[TASK], file=sys.__stdout__, flush=True)  # Celery logs what goes to sys.stdout

    worker_shutdown.connect(on_left, weak=False)
    options = ["--without-gossip", "--without-mingle", "--loglevel", "ERROR", "--concurrency", "1"]
    app.worker_main(["worker", "-Q", QUEUE, "-n", "peer@%h", *options])


def publish(app: Celery, documents: int, characters: int) -> None:
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for number in range(documents):
            text = f"{number:012d} ".ljust(characters, "x")
            app.send_task(TASK, args=({"id": f"document-{number}", "text": text},), producer=producer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("do", choices=["worker", "publish"])
    parser.add_argument("settings", choices=["careful", "default"])
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--characters", type=int, default=200)
    arguments = parser.parse_args()
    app = peer(arguments.settings)
    if arguments.do == "worker":
        serve(app)
    else:
        publish(app, arguments.documents, arguments.characters)


if __name__ == "__main__":
    main()
