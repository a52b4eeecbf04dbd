"""Prices from the genai-prices data inside the installed package: dated, offline, never updated behind our back."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

from pipeline.accounting.rates import MILLION, Price, Rates

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice


class PricesMissing(RuntimeError):  # noqa: N818
    """The genai-prices package is not installed."""


@functools.cache
def _snapshot() -> tuple[str, DataSnapshot]:
    """The package's version and its bundled data, whatever another library in this process has loaded since."""
    try:
        import genai_prices
        from genai_prices.data import providers
        from genai_prices.data_snapshot import DataSnapshot
    except ImportError as error:
        raise PricesMissing(
            "prices of hosted models need the package genai-prices: pip install genai-prices (our extra 'prices'), "
            "or give your own in a table named by CONTEXTMILL_PRICE_TABLE"
        ) from error
    return genai_prices.__version__, DataSnapshot(providers=providers, from_auto_update=False)


@functools.lru_cache(maxsize=1024)
def published(provider_id: str, model_ref: str, when: date) -> Price | None:
    """The price of a model on a day or at a time, or None. The provider's own batch, flex, ... rates are left out."""
    version, snapshot = _snapshot()
    try:
        provider, model = snapshot.find_provider_model(model_ref, None, provider_id, None)
    except LookupError:
        return None
    found = _on(model, when)
    base = _rates(found, None)
    if base is None:
        return None
    day = when.date() if isinstance(when, datetime) else when
    name = f"genai-prices:{version}:{provider.id}/{model.id}@{day}"
    source = (provider.pricing_urls or ["genai-prices"])[0]
    starts = _tier_starts(found)
    tiers = tuple((start, rates) for start in starts if (rates := _rates(found, start)))
    call = _decimal(found.requests_kcount, None) or Decimal(0)
    return Price(name, provider.id, model.id, day, source, base, tiers, call * 1000)


def _on(model: ModelInfo, when: date) -> ModelPrice:
    """The standard prices (no batch, flex or priority service) at that time, or the dearest of that day."""
    from genai_prices.types import TimeOfDateConstraint

    if isinstance(when, datetime):
        return model.get_prices(when)
    hours = {time(0)}
    for entry in model.prices if isinstance(model.prices, list) else []:
        if isinstance(entry.constraint, TimeOfDateConstraint):
            hours |= {entry.constraint.start_time, entry.constraint.end_time}
    moments = (datetime.combine(when, hour, hour.tzinfo or UTC) for hour in sorted(hours, key=time.isoformat))
    return max((model.get_prices(moment) for moment in moments), key=lambda p: _decimal(p.input_mtok, None) or 0)


def _rates(prices: ModelPrice, over: int | None) -> Rates | None:
    """Rates at the base (``over`` is None) or above a tier's threshold; None without an input price."""
    paid = _decimal(prices.input_mtok, over)
    if paid is None:
        return None
    cached, write = _decimal(prices.cache_read_mtok, over), _decimal(prices.cache_write_mtok, over)
    output = _decimal(prices.output_mtok, over)
    usd = Decimal(MILLION)
    return Rates(
        input=paid * usd,
        cached=(paid if cached is None else cached) * usd,
        cache_write=(paid if write is None else write) * usd,
        output=None if output is None else output * usd,
    )


def _decimal(value: object, over: int | None) -> Decimal | None:
    from genai_prices.types import TieredPrices

    if isinstance(value, TieredPrices):
        met = [tier.price for tier in value.tiers if over is not None and tier.start <= over]
        return met[-1] if met else value.base
    return value if isinstance(value, Decimal) else None


def _tier_starts(prices: ModelPrice) -> list[int]:
    from genai_prices.types import TieredPrices

    keys = (prices.input_mtok, prices.cache_read_mtok, prices.cache_write_mtok, prices.output_mtok)
    return sorted({tier.start for value in keys if isinstance(value, TieredPrices) for tier in value.tiers})
