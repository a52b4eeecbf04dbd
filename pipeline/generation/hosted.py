"""Answers from a hosted model: many calls in flight, each paid for once, none beyond the budget.

``check`` says before anything is sent what a person must mend; ``HostedGenerator`` does one shard's documents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from pipeline.generation.bounds import call_price
from pipeline.stages import Halt, Outcome, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec

log = logging.getLogger(__name__)


def check(spec: GenerateSpec, target: TargetSpec, api_key: SecretStr | None) -> None:
    """Before a job starts: raise ``Halt`` for what would fail every call, and say if calls will carry no key."""
    _check(spec, target, api_key)
    if not (api_key and api_key.get_secret_value().strip()):
        log.warning("CONTEXTMILL_API_KEY is not set: calls to %s go out without a key", spec.base_url)


def _check(spec: GenerateSpec, target: TargetSpec, api_key: SecretStr | None) -> None:
    """Raise ``Halt``, naming the remedy, for what would fail every call: key, settings, price, missing package."""
    _sdk()
    secret = api_key.get_secret_value().strip() if api_key else ""
    if not secret and spec.base_url is None:
        raise Halt("no key for the hosted endpoint: set CONTEXTMILL_API_KEY, or base_url for a server without keys")
    if not all("!" <= character <= "~" for character in secret):
        raise Halt("CONTEXTMILL_API_KEY holds characters that no HTTP header can carry; copy the key again")
    if spec.system and not spec.chat:
        raise Halt("a system message needs chat = true: a plain completion has no place for it")
    call_price(spec, target)


def _sdk() -> None:
    try:
        import openai  # noqa: F401
    except ImportError:
        raise Halt('backend = "openai" needs the SDK: pip install openai (our extra "hosted")') from None


@dataclass(frozen=True, slots=True)
class HostedGenerator:
    """The hosted half of the generate stage: ``target.model`` behind ``spec.base_url`` (default: OpenAI)."""

    spec: GenerateSpec
    target: TargetSpec
    api_key: SecretStr | None

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Answers paid for by an earlier attempt are taken from ``run.ledger``.

        Raises ``Halt`` (wrong key, unreachable endpoint, ...), ``BudgetReached`` and ``Stopped``, each only after the
        calls in flight have ended and are stored; on ``Stopped`` they get ``shard.GRACE_SECONDS`` for that.
        """
        _check(self.spec, self.target, self.api_key)
        if run.ledger is None:
            raise ValueError("hosted generation needs a ledger: without one a kill could pay for a document twice")
        from pipeline.generation.shard import HostedShard

        key = SecretStr(self.api_key.get_secret_value().strip()) if self.api_key else None
        return asyncio.run(HostedShard(self.spec, self.target, key, run.ledger, run).answer(documents))
