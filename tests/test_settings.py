"""Settings refuse what is no address, and repeat no piece of it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.settings import Settings

SECRET = "hunter2-secret"


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://:pw@host:6379/0",
        "redis://[::1]:6380/2",
        "rediss://user:pw@host:6379/0?ssl_cert_reqs=required",
        "redis+socket:///run/redis.sock?virtual_host=0",
    ],
)
def test_a_brokers_address_is_taken_as_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXTMILL_BROKER_URL", url)
    broker = Settings().broker_url
    assert broker is not None and broker.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/PW@host:6379",  # read as the port
        f"redis://host:6379?password={SECRET}",
        f"redis://host:6379/{SECRET}",
        f"amqp://user:{SECRET}@host",
        f"user:{SECRET}@host:6379",
        "redis://",
        "",
    ],
)
def test_what_is_no_redis_address_is_refused_unrepeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXTMILL_BROKER_URL", url)
    with pytest.raises(ValidationError, match="write redis://:PASSWORD@HOST") as raised:
        Settings()
    assert SECRET not in str(raised.value)
