"""Dated prices of hosted models: exact, offline, unknown where unknown.

Prices come from a table of the user's (``price_table``), else from the copy of the genai-prices data that is inside
the installed package. Nothing here opens a connection.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

from pipeline.accounting.price_table import PriceTable, PriceTableError, read_table
from pipeline.accounting.published import PricesMissing, published
from pipeline.accounting.rates import MILLION, Price, Rates, cost_microusd
from schemas.settings import Settings

__all__ = ["Price", "PriceTableError", "PricesMissing", "Rates", "cost_microusd", "price_of"]


def price_of(provider_model: str, when: date | None = None, table: Path | None = None) -> Price | None:
    """The price of ``provider:model`` on a day (default: today, UTC), or ``None`` where nobody knows it.

    ``table`` (default: ``CONTEXTMILL_PRICE_TABLE``) comes first. Where a price depends on the hour, a ``datetime``
    picks it; a plain date gets the day's dearest, so that a budget holds at any hour. Raises ``ValueError`` for a name
    that is no pair, ``PriceTableError`` for a bad table, ``PricesMissing`` without genai-prices.
    """
    provider, colon, model = provider_model.partition(":")
    if not (provider and colon and model):
        raise ValueError(f"{provider_model!r} is no provider:model pair; write for example openai:gpt-4.1-mini")
    path = table if table is not None else Settings().price_table
    if path is not None and (price := _own_price(read_table(path.expanduser()), provider_model)):
        return price
    return published(provider, model, when or datetime.now(UTC).date())


def _own_price(table: PriceTable, provider_model: str) -> Price | None:
    row = table.rows.get(provider_model)
    if row is None:
        return None
    provider, _, model = provider_model.partition(":")
    usd = Decimal(MILLION)
    cached = row.input if row.cached is None else row.cached
    write = row.input if row.cache_write is None else row.cache_write
    rates = Rates(row.input * usd, cached * usd, write * usd, None if row.output is None else row.output * usd)
    name = f"table:{table.digest}:{provider}/{model}@{row.date}"
    return Price(name, provider, model, row.date, row.source, rates)
