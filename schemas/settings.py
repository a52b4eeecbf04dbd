"""What an installation is told by its environment (``CONTEXTMILL_*``): servers, secrets, folders, timings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once at start. Secrets are ``SecretStr``: printing or dumping the settings never shows them."""

    model_config = SettingsConfigDict(env_prefix="CONTEXTMILL_", extra="ignore", frozen=True, allow_inf_nan=False)

    database_url: SecretStr | None = Field(None, description="default: SQLite in the output folder")
    broker_url: SecretStr | None = Field(None, description="default: an embedded server for the length of the run")
    api_key: SecretStr | None = Field(None, description="key of the hosted endpoint")
    cache_dir: Path = Field(Path("~/.cache/contextmill"), description="models are kept here")
    price_table: Path | None = Field(None, description="TOML file of your own prices, before the published ones")
    workers: int = Field(1, ge=1, le=1_024, description="worker processes of `run`; one GPU each where there are any")

    lease_seconds: float = Field(60.0, gt=0, description="a worker silent this long has lost its shard")
    renew_seconds: float = Field(15.0, gt=0, description="how often a worker renews its lease")
    reap_seconds: float = Field(10.0, gt=0, description="how often expired leases and unrung shards are looked for")
    visibility_timeout: float = Field(900.0, gt=0, description="then the broker delivers an unacked message again")
    max_attempts: int = Field(3, ge=1, description="tries until a shard is split, a document dead")
    soft_shutdown_seconds: float = Field(60.0, gt=0, description="how long a stopped worker may finish its shard")
    soft_time_limit: float = Field(1500.0, gt=0, description="seconds without progress until a shard is interrupted")
    time_limit: float = Field(1800.0, gt=0, description="seconds without progress until a shard's process ends")

    @property
    def cache(self) -> Path:
        """The cache folder, ``~`` expanded."""
        return self.cache_dir.expanduser()
