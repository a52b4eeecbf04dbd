"""Keeps the broker from delivering a message again while its shard is being worked on.

kombu scores an unacknowledged message with the time it was received and never renews it; past the visibility timeout
even the worker that is busy with it gets it once more. Touching the score is what keeps long shards single. This
leans on kombu's key names, hence the pin on its minor version; the fence in SQL stays the guarantee.
"""

from __future__ import annotations

import logging
import time

import redis

from workers.app import PREFIX

log = logging.getLogger(__name__)

UNACKED_INDEX = f"{PREFIX}unacked_index"


class Heartbeat:
    """Call it now and then: the message ``delivery_tag`` counts as received just now."""

    def __init__(self, client: redis.Redis, delivery_tag: str) -> None:
        self._client, self._tag = client, delivery_tag

    def __call__(self) -> None:
        """Renew. A broker that is away is no reason to stop working: the lease in SQL decides."""
        try:
            self._client.zadd(UNACKED_INDEX, {self._tag: time.time()}, xx=True)  # xx: never bring back an acked one
        except redis.RedisError as error:
            log.warning("message not renewed, the broker does not answer: %s", type(error).__name__)
