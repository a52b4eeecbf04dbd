"""kombu's Redis transport behind a look at each entry: what is no message of Celery's is dropped, and said so.

kombu takes an entry off its queue and decodes it outside any guard: one that is not JSON, or not of a message's shape,
ends the worker that takes it (kombu 5.7). This leans on two names of kombu's, hence the pin on its minor version.
"""

from __future__ import annotations

import base64
import functools
import logging
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.json import loads

log = logging.getLogger(__name__)

TEXTS = {
    "headers": ("task", "id"),
    "properties": ("delivery_tag", "body_encoding"),
}


def install() -> None:
    """Have every later connection to Redis look at what it receives."""
    for name in ("redis", "rediss"):
        TRANSPORT_ALIASES[name] = f"{__name__}:Transport"


def is_message(entry: bytes | str) -> bool:
    """Whether ``entry`` is a message as kombu lays it down; what its body says is not looked at."""
    try:
        message = loads(entry)
        base64.b64decode(message["body"])
        texts = [message[part][name] for part, names in TEXTS.items() for name in names]
        route = message["properties"]["delivery_info"]
        texts += [route["exchange"], route["routing_key"]]
    except Exception:  # noqa: BLE001  anything may lie in Redis, and whatever reading it raises, it is no message
        return False
    return all(isinstance(text, str) for text in texts) and message["properties"]["body_encoding"] == "base64"


class Client(redis.PrefixedStrictRedis):  # type: ignore[misc]
    """Answers "nothing came" in place of an entry that is no message."""

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """As kombu's: for BRPOP the queue and the entry, or None."""
        reply = super().parse_response(connection, command_name, **options)
        if command_name == "BRPOP" and reply and not is_message(reply[1]):
            log.error("dropped an entry of queue %s that is no message: %.80r", *reply)
            return None
        return reply


class Channel(redis.Channel):  # type: ignore[misc]
    """kombu's channel with our client."""

    def _get_client(self) -> Any:
        return functools.partial(Client, global_keyprefix=self.global_keyprefix)


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's transport with our channel."""

    Channel = Channel
