"""The Celery doorbell: publishes two ids by task name. The producer needs no worker code, and no torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import Engine

from pipeline.producer import DoorbellSilentError
from pipeline.storage.reaping import Bell, mark_rung, unrung
from pipeline.storage.shards import Claim
from workers.app import PREFIX, RUN_SHARD, bells, queue_name
from workers.heartbeat import UNACKED_INDEX

# kombu tries for six seconds: a corpus of ten thousand shards, submitted while the broker is away, would take a day.
SILENT_SECONDS = 5.0
UNACKED = f"{PREFIX}unacked"  # kombu's hash of delivered, not yet acknowledged messages


class BrokerUnreachableError(RuntimeError):
    """Nobody answers at the broker's address."""


class CeleryDoorbell:
    """Rings by publishing a message of two ids; the documents themselves never pass through Redis."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._silent_until = 0.0

    def ring(self, job_id: str, shard_id: str, kind: str, priority: str) -> None:
        """Publish. Raises ``DoorbellSilentError`` while the broker is away: a reaper rings later."""
        if time.monotonic() < self._silent_until:
            raise DoorbellSilentError("the broker did not answer a moment ago")
        queue = queue_name(kind, priority)
        try:
            self._app.send_task(RUN_SHARD, args=(job_id, shard_id), queue=queue, routing_key=queue, retry=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            self._silent_until = time.monotonic() + SILENT_SECONDS
            raise DoorbellSilentError(f"the broker does not answer: {type(error).__name__}") from error


def broker_client(app: Celery) -> redis.Redis:
    """A plain Redis client on the app's broker, for what kombu has no call for."""
    url = app.conf.broker_url.replace("redis+socket://", "unix://")
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)


def backlog(client: redis.Redis) -> int:
    """Messages waiting or in some worker's hands."""
    in_hand: Any = client.hlen(UNACKED)
    return int(in_hand) + _waiting(client).total()


def held(client: redis.Redis, seconds: float) -> Counter[Bell]:
    """Messages waiting or in some worker's hands, queue by queue. Whoever has one renews it (``heartbeat``): one that
    was not renewed for so many ``seconds`` is in nobody's, as where a worker was killed before it claimed its shard."""
    renewed: Any = client.zrangebyscore(UNACKED_INDEX, time.time() - seconds, "+inf")
    in_hand: Any = client.hmget(UNACKED, renewed) if renewed else []
    names = {queue_name(*bell): bell for bell in bells()}
    queues = map(_queue_of, filter(None, in_hand))
    return _waiting(client) + Counter(names[name] for name in queues if name in names)


def _waiting(client: redis.Redis) -> Counter[Bell]:
    pipe = client.pipeline()
    for bell in bells():
        pipe.llen(f"{PREFIX}{queue_name(*bell)}")
    return Counter(dict(zip(bells(), pipe.execute(), strict=True)))


def _queue_of(unacked: bytes) -> str | None:
    """kombu keeps [message, exchange, routing key]."""
    try:
        _, _, name = json.loads(unacked)
    except (ValueError, TypeError):
        return None
    return name if isinstance(name, str) else None


def ring_due(engine: Engine, doorbell: CeleryDoorbell, *, of: Claim | None = None) -> int:
    """Ring for shards that wait for it, a thousand at most; with ``of``, only for what this claim leaves to do.

    Returns their number. Raises ``DoorbellSilentError``.
    """
    dues = unrung(engine, of=of)
    for due in dues:
        doorbell.ring(due.job_id, due.shard_id, due.kind, due.priority)
    mark_rung(engine, dues)
    return len(dues)


def ping(url: str) -> None:
    """Raise ``BrokerUnreachableError`` unless a broker answers at ``url``; its password stays out of the text."""
    try:
        plain = url.replace("redis+socket://", "unix://")
        redis.Redis.from_url(plain, socket_timeout=5, socket_connect_timeout=5).ping()
    except (redis.RedisError, ValueError, OSError) as error:
        place = url.rpartition("@")[2].partition("?")[0]  # a query may hold a password too
        raise BrokerUnreachableError(
            f"no broker answers at {place} ({type(error).__name__}): start it, or mend CONTEXTMILL_BROKER_URL"
        ) from None
