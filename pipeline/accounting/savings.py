"""What shorter prompts save at a target's price, net of the worker's time that shortened them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from pipeline.accounting.prices import Price, PricesMissing, price_of
from pipeline.accounting.rates import MILLION, round_half_up
from schemas.job import JobSpec
from schemas.stage import GenerateSpec


@dataclass(frozen=True, slots=True)
class Removed:
    """What compression did to the documents that came through it: target tokens before and after, worker seconds.

    ``reused_before`` and ``reused_after`` are the part taken over from earlier jobs: it saves tokens when the prompts
    are sent, but cost this job no time.
    """

    before: int = 0
    after: int = 0
    seconds: float = 0.0
    reused_before: int = 0
    reused_after: int = 0

    @property
    def tokens(self) -> int:
        """Target tokens that need not be sent."""
        return self.before - self.after


@dataclass(frozen=True, slots=True)
class Saving:
    """The saving at one price, in micro-dollars, were every prompt of the output sent once. Unknown price: ``None``.

    ``net = gross - worker``. ``break_even`` is the least tokens/s (original tokens through compression) at which a
    worker pays for itself; ``break_even_cached`` the same where the prompts would have been read from the provider's
    cache. Both are ``None`` where no speed would do: nothing removed, or a price of 0, or unknown.
    """

    target: str
    price: str | None
    source: str | None
    input_usd_per_million: str | None
    tokens_removed: int
    gross_microusd: int | None
    reused_gross_microusd: int | None
    worker_microusd: int
    net_microusd: int | None
    break_even: float | None
    break_even_cached: float | None
    note: str | None


def targets_of(job: JobSpec) -> tuple[str, ...]:
    """The ``provider:model`` pairs to price savings at: those asked for, and the hosted target where it is OpenAI's."""
    hosted = any(isinstance(s, GenerateSpec) and s.backend == "openai" and s.base_url is None for s in job.stages)
    own = (f"openai:{job.target.model}",) if hosted else ()
    return tuple(dict.fromkeys((*job.target.prices, *own)))


def savings(
    targets: Iterable[str], removed: Removed, gpu_usd_per_hour: str, when: date, table: Path | None = None
) -> tuple[Saving, ...]:
    """One ``Saving`` per target, at the prices of the day ``when``."""
    return tuple(_saving(target, removed, Decimal(gpu_usd_per_hour), when, table) for target in targets)


def _saving(target: str, removed: Removed, hourly: Decimal, when: date, table: Path | None) -> Saving:
    price, note = _find(target, when, table)
    worker = round_half_up(Fraction(hourly) * MILLION * Fraction(removed.seconds) / 3600)
    reused = removed.reused_before - removed.reused_after
    gross = None if price is None else _micro(price.input, removed.tokens)
    return Saving(
        target=target,
        price=price.id if price else None,
        source=price.source if price else None,
        input_usd_per_million=_plain(price.input / MILLION) if price else None,
        tokens_removed=removed.tokens,
        gross_microusd=gross,
        reused_gross_microusd=None if price is None else _micro(price.input, reused),
        worker_microusd=worker,
        net_microusd=None if gross is None else gross - worker,
        break_even=break_even(price.input, removed, hourly) if price else None,
        break_even_cached=break_even(price.cached, removed, hourly) if price else None,
        note=note,
    )


def break_even(microusd_per_million: Decimal, removed: Removed, usd_per_hour: Decimal) -> float | None:
    """Original tokens/s at which what is saved equals what the worker costs; ``None`` where no speed would do.

    = hourly price / 3600 / (price per token x fraction of tokens removed).
    """
    if removed.before <= 0 or removed.tokens <= 0 or microusd_per_million <= 0:
        return None
    fraction = Fraction(removed.tokens, removed.before)
    usd_per_token = Fraction(microusd_per_million) / MILLION / MILLION
    return float(Fraction(usd_per_hour) / 3600 / (usd_per_token * fraction))


def _find(target: str, when: date, table: Path | None) -> tuple[Price | None, str | None]:
    try:
        price = price_of(target, when, table)
    except PricesMissing as error:  # a report must not fail for a missing extra; it says so in the row
        return None, str(error)
    if price is None:
        return None, "no known price"
    if price.tiers:
        return price, f"base rate; calls over {price.tiers[0][0]:,} input tokens cost more"
    return price, None


def _micro(rate: Decimal, tokens: int) -> int:
    return round_half_up(Fraction(rate) * tokens / MILLION)


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
