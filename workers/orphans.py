"""A run that is killed outright cannot stop what it started: its workers notice, and stop its server and themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import redis

OWNER_PID = "CONTEXTMILL_EMBEDDED_OWNER"  # set for the workers of a `run`: its process
FOLDER_PREFIX = "contextmill-broker-"
LOOK_SECONDS = 1.0


def watch_owner(client: redis.Redis) -> None:
    """Where this worker belongs to a `run`: end with it, though it be killed with -9."""
    owner = os.environ.get(OWNER_PID)
    if owner is not None:
        threading.Thread(target=_watch, args=(int(owner), client), name="owner", daemon=True).start()


def _watch(owner: int, client: redis.Redis) -> None:
    while os.getppid() == owner:
        time.sleep(LOOK_SECONDS)
    with contextlib.suppress(redis.RedisError, OSError):  # another worker of the same run may have been faster
        config: Any = client.config_get("dir")
        folder = Path(config["dir"])
        if folder.name.startswith(FOLDER_PREFIX):  # else it is no server of ours: others may be using it
            client.shutdown(nosave=True, now=True)
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # SIGTERM would wait for a broker that is gone. The child dies with us, its lease is taken back
