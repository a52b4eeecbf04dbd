"""How a worker's parent takes a message: as Celery does, but what is no task message of ours is refused."""

from __future__ import annotations

from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default
from kombu.exceptions import ContentDisallowed, DecodeError

# As the doorbell leaves them. A message with an ETA would be held in memory; oddly typed ones end the parent process.
PLAIN: dict[str, Any] = {
    "eta": None, "expires": None, "retries": 0, "timelimit": [None, None], "group": None, "stamped_headers": None,
    "stamps": {},
}  # fmt: skip


def checked(task: Any, app: Any, consumer: Any, **options: Any) -> Any:
    """Celery's own strategy behind a look at the message.

    Celery 5.7 ends its parent process on a body that decodes to anything but ``[args, kwargs, options]``, and on
    headers of wrong types; the message is delivered again and ends the next one too.
    """
    handle = default(task, app, consumer, **options)

    def handler(message: Any, body: Any, *rest: Any, **more: Any) -> Any:
        payload = _payload(message) if body is None else body
        if not (isinstance(payload, list) and len(payload) == 3 and isinstance(payload[1], dict)):
            raise InvalidTaskError("not a task message")
        if odd := [name for name, value in PLAIN.items() if message.headers.get(name, value) != value]:
            raise InvalidTaskError(f"not a message of ours: it has {', '.join(odd)}")
        return handle(message, body, *rest, **more)

    return handler


def _payload(message: Any) -> Any:
    try:
        return message.payload
    except (ContentDisallowed, DecodeError):  # Celery refuses these itself, and says why
        raise
    except Exception as error:  # a content type or encoding of a wrong type: whatever kombu trips over
        raise InvalidTaskError("not a task message") from error
