"""The server of the one-machine mode: others on the machine reach its port, and get nothing there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
import redis
from servers import free_port

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
