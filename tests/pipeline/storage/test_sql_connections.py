"""What a connection to a database server knows about a server that is gone."""

from __future__ import annotations

import socket

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
