"""Prices: dated, exact, offline; unknown stays unknown."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.data_snapshot import DataSnapshot
from hypothesis import given
from hypothesis import strategies as st

from pipeline.accounting import prices, published
from pipeline.accounting.prices import Price, PricesMissing, PriceTableError, Rates, cost_microusd, price_of
from pipeline.accounting.rates import round_half_up

DAY = date(2026, 11, 22)
TOKEN_KEYS = {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "requests_kcount"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach the network fails the test."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"tried to connect: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("CONTEXTMILL_PRICE_TABLE", raising=False)


def known(name: str, when: date = DAY) -> Price:
    price = price_of(name, when)
    assert price is not None
    return price


def test_a_published_price_says_where_it_comes_from() -> None:
    price = known("openai:gpt-4.1-mini")
    assert [price.input, price.cached, price.output] == [400_000, 100_000, 1_600_000]
    assert price.id.startswith("genai-prices:0.2.") and price.id.endswith(":openai/gpt-4.1-mini@2026-11-22")
    assert price.source.startswith("https://")
    assert cost_microusd(price, 2_000, 8_000, 1_000) == 800 + 800 + 1600


def test_an_alias_is_priced_as_the_model_it_names() -> None:
    assert known("openai:gpt-4.1-mini-2025-04-14").id == known("OpenAI:gpt-4.1-mini").id


@pytest.mark.parametrize("name", ["openai:no-such-model", "nobody:gpt-4.1-mini", "local:smollm2-135m-instruct"])
def test_unknown_is_none_never_zero(name: str) -> None:
    assert price_of(name) is None
    assert cost_microusd(price_of(name), 10, 0, 10) is None


@pytest.mark.parametrize("name", ["gpt-4.1-mini", ":gpt", "openai:", ""])
def test_a_name_that_is_no_pair_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="provider:model"):
        price_of(name)


def test_an_unknown_output_rate_makes_only_calls_with_output_unknown() -> None:
    price = replace(known("openai:gpt-4.1-mini"), rates=Rates(Decimal(1), Decimal(1), Decimal(1), None))
    assert cost_microusd(price, 1_000_000, 0, 0) == 1
    assert cost_microusd(price, 1_000_000, 0, 1) is None


def test_crossing_a_tier_reprices_the_whole_call() -> None:
    price = known("anthropic:claude-sonnet-4-5")
    assert cost_microusd(price, 200_000, 0, 0) == 600_000
    assert cost_microusd(price, 200_001, 0, 0) == 1_200_006
    assert cost_microusd(price, 100_001, 100_000, 1000) == 600_006 + 60_000 + 22_500


def test_a_price_by_the_hour_is_the_days_dearest_unless_the_hour_is_given() -> None:
    assert known("deepseek:deepseek-chat").input == 270_000
    assert known("deepseek:deepseek-chat", datetime(2026, 11, 22, 20, tzinfo=UTC)).input == 135_000


def test_a_price_changes_with_its_date() -> None:
    changed = [known("openai:o3", day).input for day in (date(2025, 6, 1), date(2025, 7, 1))]
    assert changed == [10_000_000, 2_000_000]


def test_a_fee_per_call_is_counted_once() -> None:
    price = known("perplexity:sonar")
    assert price.call > 0
    assert cost_microusd(price, 0, 0, 0) == round_half_up(Fraction(price.call))


def test_every_published_model_costs_what_genai_prices_says() -> None:
    """All models priced by text tokens alone, both sides of every tier, against the package's own arithmetic."""
    snapshot, when, seen = DataSnapshot(providers=providers, from_auto_update=False), datetime(2026, 11, 22), 0
    for provider in providers:
        for model in provider.models:
            given_prices = model.get_prices(when)
            keys = {key for key, value in given_prices.__dict__.items() if value is not None}
            found = published._rates(given_prices, None)
            if found is None or found.output is None or not keys <= TOKEN_KEYS | {"web_searches_kcount"}:
                continue
            starts = published._tier_starts(given_prices)
            tiers = tuple((start, rates) for start in starts if (rates := published._rates(given_prices, start)))
            fee = (published._decimal(given_prices.requests_kcount, None) or Decimal(0)) * 1000
            price = Price("", provider.id, model.id, DAY, "", found, tiers, fee)
            for total in {0, 7, 1_234_567, *starts, *(start + 1 for start in starts)}:
                cached, written, out = total // 3, total // 5, total // 2 + 1
                usage = Usage(
                    input_tokens=total, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=out
                )
                paid = model.calc_price(usage, snapshot.find_provider(None, provider.id, None),
                                        genai_request_timestamp=when).total_price  # fmt: skip
                ours = cost_microusd(price, total - cached - written, cached, out, cache_write=written)
                assert ours == round_half_up(Fraction(paid) * 1_000_000), (provider.id, model.id, total)
                seen += 1
    assert seen > 5_000


@given(
    rate=st.decimals("0", "1000", places=6), tokens=st.integers(0, 10**15), split=st.integers(0, 100),
)  # fmt: skip
def test_cost_is_exact_and_rounds_half_up_once(rate: Decimal, tokens: int, split: int) -> None:
    price = Price("", "p", "m", DAY, "", Rates(rate, rate, rate, rate))
    cached = tokens * split // 100
    exact = Fraction(rate) * tokens / 1_000_000
    cost = cost_microusd(price, tokens - cached, cached, 0)
    assert cost is not None
    assert Fraction(-1, 2) <= exact - cost < Fraction(1, 2)


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        cost_microusd(known("openai:gpt-4.1-mini"), -1, 0, 0)


def test_your_own_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('["openai:gpt-4.1-mini"]\ninput = "0.36"\noutput = "1.44"\ndate = 2026-11-01\nsource = "us"\n')
    price = price_of("openai:gpt-4.1-mini", DAY, table)
    assert price is not None
    assert [price.input, price.cached, price.output] == [360_000, 360_000, 1_440_000]
    assert price.id.startswith("table:") and price.id.endswith(":openai/gpt-4.1-mini@2026-11-01")
    monkeypatch.setenv("CONTEXTMILL_PRICE_TABLE", str(table))
    assert known("openai:gpt-4.1-mini").source == "us"
    assert known("openai:gpt-4.1").input == 2_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a:b"]\ninput = 0.4\ndate = 2026-01-01\n', "as a string"),
        ('["a:b"]\ninput = "-1"\ndate = 2026-01-01\n', "greater than or equal to 0"),
        ('["a:b"]\ninput = "NaN"\ndate = 2026-01-01\n', "finite"),
        ('["a:b"]\ninput = "1"\n', "date"),
        ('["a:b"]\ninput = "1"\ndate = 2026-01-01\ncahced = "1"\n', "cahced"),
        ("[[", "prices.toml"),
    ],
)
def test_a_bad_table_says_what_to_mend(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(text)
    with pytest.raises(PriceTableError, match=message) as error:
        price_of("a:b", DAY, table)
    assert str(table) in str(error.value)


def test_a_missing_table_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    with pytest.raises(PriceTableError, match="CONTEXTMILL_PRICE_TABLE"):
        price_of("openai:gpt-4.1-mini", DAY, tmp_path / "none.toml")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    published._snapshot.cache_clear()
    published.published.cache_clear()
    with pytest.raises(PricesMissing, match="pip install genai-prices"):
        prices.price_of("openai:gpt-4.1-mini")
