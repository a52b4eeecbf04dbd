"""The Celery app and every broker setting, with its reason. Imports no torch: the parent process stays light."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from pipeline.stages import STAGES
from pipeline.storage.reaping import Bell
from pipeline.storage.shards import PUBLISH
from schemas.settings import Settings

PREFIX = "contextmill:"
RUN_SHARD = "contextmill.run_shard"
PRIORITIES = ("high", "bulk")


def queue_name(kind: str, priority: str) -> str:
    """The queue of a stage and priority. Redis own priorities cannot be inspected; names can."""
    return f"contextmill.{kind}.{priority}"


def bells() -> list[Bell]:
    """All kinds and priorities, high priority first: a worker looks at their queues in this order."""
    return [(kind, priority) for priority in PRIORITIES for kind in (PUBLISH, *STAGES)]


def queue_names() -> list[str]:
    """The queues of all bells, in their order."""
    return [queue_name(*bell) for bell in bells()]


def make_app(settings: Settings) -> Celery:
    """A Celery app for ``settings.broker_url``."""
    if settings.broker_url is None:
        raise ValueError("no broker: set CONTEXTMILL_BROKER_URL=redis://HOST:PORT/DB")
    app = Celery("contextmill", broker=settings.broker_url.get_secret_value(), include=["workers.tasks"])
    app.conf.update(_broker(settings), **_tasks(), **_worker(settings))
    return app


def _broker(settings: Settings) -> dict[str, object]:
    return {
        "broker_transport_options": {
            "global_keyprefix": PREFIX,
            # Unacked messages come back after this. So short only because the lease heartbeat renews it.
            "visibility_timeout": settings.visibility_timeout,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,  # kombu looks every interval x throttle seconds; the default makes it 100
            "queue_order_strategy": "priority",  # in the order of -Q, not round robin
            "socket_keepalive": True,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "health_check_interval": 25,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a broker away for a minute, or an hour, is waited for
        "result_backend": None,  # results live in Parquet and SQL
    }


def _tasks() -> dict[str, object]:
    return {
        "task_acks_late": True,  # a killed worker's message is delivered again
        "task_reject_on_worker_lost": True,  # the same where only its child was killed
        "task_retry_on_worker_lost": False,  # Celery would send an ETA message; the SQL attempt limit ends the loop
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],  # never pickle
        "task_create_missing_queues": False,  # a misspelt queue is an error, not a place where shards vanish
        "task_queues": [Queue(name, routing_key=name) for name in queue_names()],
        "task_default_queue": queue_name(PUBLISH, "bulk"),
    }


def _worker(settings: Settings) -> dict[str, object]:
    return {
        "worker_pool": "prefork",  # solo loses tasks at shutdown; threads cannot be stopped
        "worker_pool_start_method": "spawn",  # CUDA does not survive a fork
        "worker_concurrency": 1,  # one GPU, one process
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,  # else a shard waits behind a long one while other workers idle
        "worker_proc_alive_timeout": 600,  # importing torch and loading a model takes longer than the default 4 s
        "worker_soft_shutdown_timeout": settings.soft_shutdown_seconds,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # the lease in SQL says whether to go on
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": True,
        "worker_send_task_events": False,
    }
