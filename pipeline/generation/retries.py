"""When a call is made again: what its failure means for the bill, how long to wait, when to give up."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

FIRST_WAIT = 0.5  # seconds; doubles with every try
LONGEST_WAIT = 30.0
LEAST_SECONDS = 0.5  # a try with less time cannot even tell an endpoint that is away from one that is slow

Code = Literal[
    "rate_limited",  # 429
    "unreachable",  # no connection was made
    "server_error",  # 408, 409, 5xx
    "no_answer",  # sent, but the connection broke or time ran out
    "bad_response",  # an answer of 200 that is not one
    "prompt_too_long",  # the document's own fault
    "endpoint_error",  # any other 4xx for this document
    "refused",  # wrong key, unknown model, unknown setting: every other document would meet the same
]

RETRIED: frozenset[Code] = frozenset({"rate_limited", "unreachable", "server_error", "no_answer", "bad_response"})
WAITED_OUT: frozenset[Code] = frozenset({"rate_limited", "unreachable"})
"""Retried until the deadline, whatever ``max_retries``: such a call is never billed, and never the document's fault."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one call gave no answer. ``billed``: it may be on the endpoint's bill all the same."""

    code: Code
    detail: str
    billed: bool = False
    retry_after: float | None = None


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds asked for by a ``Retry-After`` header: a number, or an HTTP date (RFC 9110, 10.2.3). None: unreadable."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if seconds < float("inf") else None  # also false for NaN
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


@dataclass(slots=True)
class Patience:
    """One document's time and tries. Time waited for a slot or for money is ours and does not count."""

    seconds: float
    max_retries: int
    tries: int = 0
    failures: int = 0
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    def used(self) -> float:
        """Seconds since the first call, waiting for slots and money left out."""
        return self.seconds - self.left()

    def excuse(self, seconds: float) -> None:
        """Do not count these seconds."""
        self.began += seconds

    def wait(self, failure: Failure) -> float | None:
        """Seconds until the next try, or ``None``: give up.

        Full jitter: uniform in ``[0, min(30, 0.5 * 2^n)]`` (Brooker, Exponential Backoff And Jitter, AWS 2015), on
        top of what the endpoint asks for, so that all who were told the same moment do not come back at once.
        """
        self.tries += 1
        if failure.code not in WAITED_OUT:
            self.failures += 1
        if failure.code not in RETRIED or self.failures > self.max_retries:
            return None
        jitter = random.uniform(0.0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self.tries - 1, 10)))
        if failure.retry_after is not None:
            # Short of the deadline the endpoint's word is kept; a try it says must fail is not worth making.
            return failure.retry_after + min(jitter, 1.0) if failure.retry_after < self.left() else None
        return jitter if jitter + LEAST_SECONDS < self.left() else None
