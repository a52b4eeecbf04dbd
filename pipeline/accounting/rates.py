"""What a price is, and the exact cost of a call at it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Rates:
    """Micro-dollars per million tokens. A cache rate nobody publishes is the input rate; output may be unknown."""

    input: Decimal
    cached: Decimal
    cache_write: Decimal
    output: Decimal | None


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs on a day. ``id`` is what usage rows carry: table and version, provider/model, date.

    ``tiers``, ascending: a call of *more than* so many input tokens pays these rates for all of its tokens, output
    too (the cliff every provider in the data uses). ``call`` is a fee per call, in micro-dollars.
    """

    id: str
    provider: str
    model: str
    date: date
    source: str
    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    call: Decimal = Decimal(0)

    @property
    def input(self) -> Decimal:
        """Micro-dollars per million uncached input tokens, base tier."""
        return self.rates.input

    @property
    def cached(self) -> Decimal:
        """Micro-dollars per million input tokens read from the provider's cache, base tier."""
        return self.rates.cached

    @property
    def output(self) -> Decimal | None:
        """Micro-dollars per million output tokens, base tier."""
        return self.rates.output

    def rates_for(self, input_tokens: int) -> Rates:
        """The rates of a call with so many input tokens, cached ones included."""
        return next((rates for over, rates in reversed(self.tiers) if input_tokens > over), self.rates)


def cost_microusd(
    price: Price | None, input_uncached: int, cached: int, output: int, *, cache_write: int = 0
) -> int | None:
    """What one call costs, exact, rounded half up once at the end; ``None`` where the price is unknown.

    The three input counts do not overlap: uncached (neither read from nor written to a cache), read, written.
    """
    if price is None:
        return None
    if min(input_uncached, cached, output, cache_write) < 0:
        raise ValueError(f"negative tokens: {input_uncached=} {cached=} {output=} {cache_write=}")
    rates = price.rates_for(input_uncached + cached + cache_write)
    if rates.output is None and output:
        return None
    total = _times(rates.input, input_uncached) + _times(rates.cached, cached)
    total += _times(rates.cache_write, cache_write) + _times(rates.output or Decimal(0), output)
    return round_half_up(total / MILLION + Fraction(price.call))


def round_half_up(value: Fraction) -> int:
    """The nearest integer; a half goes up (towards +infinity)."""
    return math.floor(value + Fraction(1, 2))


def _times(rate: Decimal, tokens: int) -> Fraction:
    # Fractions, because Decimal arithmetic rounds to the context's precision.
    return Fraction(rate) * tokens
