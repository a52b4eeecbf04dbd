"""The most a call can cost, known before it is sent."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.accounting.prices import Price, PricesMissing, PriceTableError, cost_microusd, price_of
from pipeline.stages import Halt
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec

FRAME_TOKENS = 64
"""Tokens the endpoint adds around the messages: roles, separators, a default system prompt."""


@dataclass(frozen=True, slots=True)
class TokenBound:
    """Upper bound of a prompt's tokens.

    Exact count plus ``FRAME_TOKENS`` with the model's own tokenizer; else UTF-8 bytes plus ``FRAME_TOKENS``, which
    no byte-level or byte-fallback tokenizer exceeds: a token stands for a byte or more. A stand-in tokenizer
    (``target.tokenizer``) bounds nothing; it only estimates.
    """

    tokenizer: Any
    own: bool

    def most(self, text: str) -> int:
        """At most so many tokens."""
        return self.likely(text) if self.own else len(text.encode("utf-8", "replace")) + FRAME_TOKENS

    def likely(self, text: str) -> int:
        """About so many tokens, for rate limits."""
        if self.tokenizer is None:
            return len(text.encode("utf-8", "replace")) + FRAME_TOKENS
        return len(self.tokenizer(text, verbose=False)["input_ids"]) + FRAME_TOKENS


def token_bound(spec: GenerateSpec, target: TargetSpec) -> TokenBound:
    """The bound for a job's target. The tokenizer is loaded only where money or tokens are limited."""
    limited = spec.budget_usd is not None or spec.tokens_per_minute is not None
    tokenizer = _tokenizer(target.tokenizer_model) if limited else None
    return TokenBound(tokenizer, tokenizer is not None and target.tokenizer_model == target.model)


@functools.lru_cache(maxsize=8)
def _tokenizer(name: str) -> Any:
    from pipeline.models.ref import ModelError
    from pipeline.models.tokenizers import load_tokenizer

    try:
        return load_tokenizer(name)
    except ModelError:
        return None  # a hosted model's name: bytes bound it as well


def worst_microusd(price: Price | None, tokens_in: int, tokens_out: int) -> int | None:
    """The dearest a call of at most so many tokens can be: nothing cached, or all of it written to a dear cache."""
    plain = cost_microusd(price, tokens_in, 0, tokens_out)
    written = cost_microusd(price, 0, 0, tokens_out, cache_write=tokens_in)
    return None if plain is None or written is None else max(plain, written)


def price_key(target: TargetSpec) -> str:
    """The ``provider:model`` that prices the target's calls: the pair of ``prices`` that names it, else OpenAI's."""
    named = (pair for pair in target.prices if pair.partition(":")[2] == target.model)
    return next(named, f"openai:{target.model}")


def call_price(spec: GenerateSpec, target: TargetSpec) -> Price | None:
    """Today's price of the target, or ``None``. With a budget an unknown price is a ``Halt``: nothing could be held."""
    try:
        price = price_of(price_key(target))
    except PriceTableError as error:
        raise Halt(str(error)) from None
    except PricesMissing as error:
        if spec.budget_usd is not None:
            raise Halt(f"budget_usd cannot be held: {error}") from None
        return None
    if spec.budget_usd is not None and cost_microusd(price, 1, 0, 1) is None:
        raise no_price(target)
    return price


def no_price(target: TargetSpec) -> Halt:
    """Why a budget cannot be held for this target, and what helps."""
    return Halt(
        f"budget_usd cannot be held: no price is known for {price_key(target)}. Name the model's provider in "
        f'[target] prices = ["provider:{target.model}"], give its price in a table (CONTEXTMILL_PRICE_TABLE), '
        "or leave budget_usd out"
    )
