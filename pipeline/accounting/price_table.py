"""Prices of the user's own: a TOML table that comes before the published ones.

["openai:gpt-4.1-mini"]      # provider:model, as in [target] prices
input = "0.36"               # dollars per million tokens, as strings: a TOML float is not exact
cached = "0.09"              # optional: read from the provider's cache; default: the input price
cache_write = "0.36"         # optional; default: the input price
output = "1.44"              # optional: without it a call's cost is unknown
date = 2026-11-01            # since when you know it
source = "framework contract"
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError


class PriceTableError(ValueError):
    """The price table cannot be used as it is."""


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError('write the price as a string, "0.40": a TOML float is not exact')
    return value


Usd = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, allow_inf_nan=False)]


class PriceRow(BaseModel):
    """One model's prices in dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input: Usd
    cached: Usd | None = None
    cache_write: Usd | None = None
    output: Usd | None = None
    date: date
    source: str = "own table"


@dataclass(frozen=True, slots=True)
class PriceTable:
    """The rows by ``provider:model``, and the first 8 hex digits of the file's sha256: its version."""

    digest: str
    rows: dict[str, PriceRow]


_ROWS = TypeAdapter(dict[str, PriceRow])


def read_table(path: Path) -> PriceTable:
    """The table, read again when the file changes. ``PriceTableError`` names the file and what to mend."""
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise PriceTableError(f"price table {path}: {error.strerror}; mend CONTEXTMILL_PRICE_TABLE") from error
    return _read(path, stamp)


@functools.lru_cache(maxsize=8)
def _read(path: Path, stamp: int) -> PriceTable:
    del stamp
    raw = path.read_bytes()
    try:
        rows = _ROWS.validate_python(tomllib.loads(raw.decode()))
    except ValidationError as error:
        first = error.errors()[0]
        where = " -> ".join(str(part) for part in first["loc"])
        raise PriceTableError(f"price table {path}: [{where}] {first['msg']}") from error
    except ValueError as error:  # bad UTF-8 or bad TOML
        raise PriceTableError(f"price table {path}: {error}") from error
    return PriceTable(hashlib.sha256(raw).hexdigest()[:8], rows)
