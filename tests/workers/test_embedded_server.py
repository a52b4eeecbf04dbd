"""The server of the one-machine mode: others on the machine reach its port, and get nothing there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import redis
from fleet import wait_until
from servers import RedisServer, free_port

from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from schemas.settings import Settings
from workers import embedded
from workers.embedded import Embedded


def test_nobody_gets_in_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in the moment after its first answer, nor when it is started again."""
    port, answers, stop = free_port(), list[bytes](), threading.Event()
    monkeypatch.setattr(embedded, "_free_port", lambda: port)

    def stranger() -> None:
        while not stop.wait(0.002):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as line:
                line.settimeout(1)
                line.sendall(b"SET mine 1\r\n")
                answers.append(line.recv(64))

    thread = threading.Thread(target=stranger)
    thread.start()
    try:
        with Embedded(Settings(), 0, tmp_path) as running:
            assert running.settings.broker_url is not None
            url = running.settings.broker_url.get_secret_value()
            with redis.Redis.from_url(url) as client:
                assert client.set("ours", "1")
                client.shutdown(nosave=True)
            running.check()
            with redis.Redis.from_url(url) as client:
                assert client.get("ours") == b"1"
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join()
    said = {answer.partition(b" ")[0] for answer in answers if answer}
    assert said == {b"-NOPERM"}


@pytest.mark.parametrize(
    ("visible", "workers", "expected"),
    [("0,1,2,3", 1, ["0,1,2,3"]), ("4,5,6", 2, ["4,6", "5"]), ("0,1", 3, ["0", "1", "0"]), ("GPU-a", 1, ["GPU-a"])],
)
def test_workers_share_the_gpus(
    visible: str, workers: int, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them: a training on several needs them in one worker."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fleet = Embedded(Settings(), workers, tmp_path)
    assert [fleet._environment(number)["CUDA_VISIBLE_DEVICES"] for number in range(workers)] == expected


RUN = """
import time
from pathlib import Path
from schemas.settings import Settings
from workers.embedded import Embedded
with Embedded(Settings(), 1, Path("logs")):
    time.sleep(300)
"""


def test_workers_of_a_killed_run_go_and_leave_the_users_own_redis_alone(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    migrate(open_engine(sqlite_url))
    servers = {"CONTEXTMILL_BROKER_URL": redis_server.url, "CONTEXTMILL_DATABASE_URL": sqlite_url}
    with subprocess.Popen([sys.executable, "-c", RUN], cwd=tmp_path, env={**os.environ, **servers}) as run:
        log = tmp_path / "logs" / "worker-0.log"
        wait_until(lambda: log.exists() and " ready." in log.read_text(), 240, "a worker")
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) >= 2, "a parent and its child"
        run.send_signal(signal.SIGKILL)
    try:
        wait_until(lambda: not [p for p in family if p.is_running() and p.status() != "zombie"], 50, "all gone")
        assert redis_server.running and redis_server.answers()
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
