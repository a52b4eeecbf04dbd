"""Settings refuse what is no address, and repeat no piece of it; and limits that contradict each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.errors import explain
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


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("SOFT_TIME_LIMIT", "1800", "TIME_LIMIT"),  # equal to the default of the other
        ("TIME_LIMIT", "60", "SOFT_TIME_LIMIT"),
        ("RENEW_SECONDS", "61", "LEASE_SECONDS"),
        ("LEASE_SECONDS", "10", "RENEW_SECONDS"),
        ("VISIBILITY_TIMEOUT", "15", "RENEW_SECONDS"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(
    name: str, value: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CONTEXTMILL_{name}", value)
    with pytest.raises(ValidationError) as raised:
        Settings()
    said = explain(raised.value)
    assert said is not None and said[1], "a usage error"
    assert f"CONTEXTMILL_{name} ({value} s)" in said[0] and f"CONTEXTMILL_{other} (" in said[0]
    assert "lower the first or raise the second" in said[0]
