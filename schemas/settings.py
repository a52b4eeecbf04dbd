"""What an installation is told by its environment (``CONTEXTMILL_*``): servers, secrets, folders, timings."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

BELOW = (("soft_time_limit", "time_limit"), ("renew_seconds", "lease_seconds"), ("renew_seconds", "visibility_timeout"))


class Settings(BaseSettings):
    """Read once at start. Secrets are ``SecretStr``: printing or dumping the settings never shows them."""

    model_config = SettingsConfigDict(
        env_prefix="CONTEXTMILL_", extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    database_url: SecretStr | None = Field(None, description="default: SQLite in the output folder")
    broker_url: SecretStr | None = Field(None, description="default: an embedded server for the length of the run")
    api_key: SecretStr | None = Field(None, description="key of the hosted endpoint")
    cache_dir: Path = Field(Path("~/.cache/contextmill"), description="models are kept here")
    price_table: Path | None = Field(None, description="TOML file of your own prices, before the published ones")
    workers: int = Field(
        1,
        ge=1,
        le=1_024,
        description="worker processes of `run`, which share the GPUs: all for one, one each for as many",
    )

    resident_models: int = Field(2, ge=1, description="models a worker keeps, besides their drafters and encoders")
    lease_seconds: float = Field(60.0, gt=0, description="a worker silent this long has lost its shard")
    renew_seconds: float = Field(15.0, gt=0, description="how often a worker renews its lease")
    reap_seconds: float = Field(10.0, gt=0, description="how often expired leases and unrung shards are looked for")
    visibility_timeout: float = Field(900.0, gt=0, description="then the broker delivers an unacked message again")
    max_attempts: int = Field(3, ge=1, description="tries until a shard is split, a document dead")
    soft_shutdown_seconds: float = Field(60.0, gt=0, description="how long a stopped worker may finish its shard")
    soft_time_limit: float = Field(1500.0, gt=0, description="seconds without progress until a shard is interrupted")
    time_limit: float = Field(1800.0, gt=0, description="seconds without progress until a shard's process ends")

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, url: SecretStr | None) -> SecretStr | None:
        """Refused here, without a piece of it: the clients' own errors repeat the password."""
        if url is not None and not _redis_address(url.get_secret_value()):
            raise ValueError(
                "write redis://:PASSWORD@HOST:PORT/0, rediss:// for TLS or redis+socket:///FILE, with signs like "
                "@ : / in the password as %40 %3A %2F"
            )
        return url

    @model_validator(mode="after")
    def _limits_agree(self) -> Settings:
        """One that strikes after the other never strikes; a lease that runs out unrenewed is lost by the healthy."""
        for first, then in BELOW:
            low, high = getattr(self, first), getattr(self, then)
            if low >= high:
                names = [f"CONTEXTMILL_{name.upper()}" for name in (first, then)]
                raise ValueError(
                    f"{names[0]} ({low:g} s) must be less than {names[1]} ({high:g} s): "
                    "lower the first or raise the second; what is not set has its default"
                )
        return self

    @property
    def cache(self) -> Path:
        """The cache folder, ``~`` expanded."""
        return self.cache_dir.expanduser()


def _redis_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        hidden = parse_qs(parts.query).keys() & {"password", "username"}  # a place where nothing blots it out
        if parts.scheme == "redis+socket":
            return bool(parts.path) and not hidden
        database = parts.path.strip("/")
        named = bool(parts.hostname) and parts.port != 0  # the port is parsed here, and refused if it is no number
    except ValueError:
        return False
    return parts.scheme in ("redis", "rediss") and named and not hidden and (not database or database.isdigit())
