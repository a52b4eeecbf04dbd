"""What a connection knows about a server that is gone, and what it waits for."""

from __future__ import annotations

import socket
import sqlite3
import threading
from pathlib import Path

import pytest

from pipeline.storage.sql import BUSY_SECONDS, open_engine


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone lets a program say it")
def test_a_server_that_vanished_is_noticed_in_time_to_try_again(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        with socket.socket(fileno=socket.dup(driver.fileno())) as wire:
            said = [wire.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS]
            assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    engine.dispose()
    unsent, idle, every, times = said
    assert 0 < unsent / 1000 < BUSY_SECONDS / 2
    assert 0 < idle + every * times < BUSY_SECONDS / 2


OPTIONS = [getattr(socket, name, 0) for name in ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")]


def test_a_new_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    """SQLite fails who asks for a log then, at once, whatever the timeout."""
    file = tmp_path / "contextmill.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("begin immediate")
    waiting = threading.Timer(0.3, other.execute, ["rollback"])
    waiting.start()
    engine = open_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        assert waiting.finished.is_set()
    engine.dispose()
    waiting.join()
    other.close()
