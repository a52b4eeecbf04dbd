"""What a stage that pays per call needs remembered: calls, money and pace, whatever kills the process in between.

The stage knows this protocol alone; ``pipeline.storage.requests.SqlLedger`` keeps it in the job's database.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol


class Grant(Enum):
    """Whether a call may be sent."""

    SENT = auto()  # its row stands there as sent, its worst case is reserved
    WAIT = auto()  # calls in flight hold the rest of the budget; what they do not use comes back
    NEVER = auto()  # what is spent leaves too little, whatever comes back


@dataclass(frozen=True, slots=True)
class Bill:
    """What one answered call used. Input tokens include the cached ones; an unknown cost is ``None``, never 0."""

    tokens_in: int
    tokens_cached: int | None
    tokens_out: int
    cost_microusd: int | None
    price: str | None


@dataclass(frozen=True, slots=True)
class Paid:
    """An answer that is paid for: the endpoint's own JSON, its bill, and the seconds it took."""

    response: dict[str, Any]
    bill: Bill
    seconds: float


class Ledger(Protocol):
    """The calls of one shard's stage. Every method is one short transaction, safe to repeat, and may block.

    A call is *sent* until it is *done* (answered, with its bill), *failed* (answered with an error, or never
    delivered: not billed) or *lost* (nobody saw its end, so it may have been billed; its worst case counts as spent).
    """

    @property
    def job_id(self) -> str:
        """The job whose calls these are."""
        ...

    def tried(self, seqs: Collection[int]) -> frozenset[int]:
        """Which of these documents an earlier attempt made a call for, whatever came of it."""
        ...

    def recall(self, seqs: Collection[int]) -> dict[int, Paid]:
        """The answers already paid for, by document. Calls an earlier attempt left *sent* become *lost*."""
        ...

    def met(self) -> bool:
        """Whether the endpoint has ever answered a call of this job and stage."""
        ...

    def send(self, call_id: str, seq: int, worst_microusd: int | None, price: str | None) -> Grant:
        """Reserve the worst case and write the call down as *sent*, both or neither. Before the call itself."""
        ...

    def done(self, call_id: str, response: dict[str, Any], bill: Bill) -> None:
        """Store the answer and settle its reservation with the real cost."""
        ...

    def failed(self, call_id: str, error: str) -> None:
        """The call was not billed: its reservation comes back whole."""
        ...

    def lost(self, call_id: str, error: str) -> None:
        """The call may have been billed: its reservation counts as spent."""
        ...

    def expire(self, seconds: float) -> int:
        """Calls of this job that have been *sent* for longer than any call may take become *lost*; their number."""
        ...

    def pace(self, name: str, units: float, per_minute: float) -> float:
        """Take the next free slot of a rate shared by all workers of the job; seconds until it comes."""
        ...

    def money(self) -> tuple[int, int] | None:
        """Micro-dollars spent by this job, and its limit; ``None`` without a budget."""
        ...
