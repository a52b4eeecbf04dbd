"""Calls to a paid endpoint in SQL: one row per call, one budget per job, rates shared by all workers.

Money moves in the transaction that changes the call's row, so a kill at any moment leaves the two consistent.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, case, insert, null, select, update
from sqlalchemy.engine import Connection

from pipeline.generation.ledger import Bill, Grant, Paid
from pipeline.storage.sql import db_now, insert_ignore, patiently, reading
from schemas.tables import Budget, Pace, Request

KILLED = "in flight when its worker ended"
OVERDUE = "no answer was stored in any time a call may take"


def ensure_budget(engine: Engine, job_id: str, limit_microusd: int) -> None:
    """Give a job its limit, or a new one: what it has reserved and spent stays."""
    row = {"job_id": job_id, "limit_microusd": limit_microusd, "reserved_microusd": 0, "spent_microusd": 0}
    with engine.begin() as connection:
        insert_ignore(connection, Budget, [row])
        connection.execute(update(Budget).where(Budget.job_id == job_id).values(limit_microusd=limit_microusd))


@dataclass(frozen=True, slots=True)
class SqlLedger:
    """The ``pipeline.generation.ledger.Ledger`` of one attempt at one shard."""

    engine: Engine
    job_id: str
    stage: int
    attempt: int

    def tried(self, seqs: Collection[int]) -> frozenset[int]:
        """See ``Ledger``."""
        if not seqs:
            return frozenset()
        earlier = select(Request.seq).where(*self._of(seqs), Request.attempt < self.attempt).distinct()

        def act() -> frozenset[int]:
            with reading(self.engine) as connection:
                return frozenset(connection.scalars(earlier)) & frozenset(seqs)

        return patiently(act)

    def recall(self, seqs: Collection[int]) -> dict[int, Paid]:
        """See ``Ledger``. The caller holds the shard's claim, so a call found *sent* has no live owner."""
        if not seqs:
            return {}
        of_shard = self._of(seqs)

        def act() -> dict[int, Paid]:
            with self.engine.begin() as connection:
                stale = select(Request.id).where(*of_shard, Request.state == "sent")
                for call_id in connection.scalars(stale).all():
                    _settle(connection, call_id, "lost", {"error": KILLED})
                done = select(Request).where(*of_shard, Request.state == "done").order_by(Request.finished_at)
                return {row.seq: _paid(row) for row in connection.execute(done) if row.response is not None}

        wanted = set(seqs)
        return {seq: paid for seq, paid in patiently(act).items() if seq in wanted}

    def met(self) -> bool:
        """See ``Ledger``."""
        mine = (Request.job_id == self.job_id, Request.stage == self.stage, Request.state == "done")

        def act() -> bool:
            with reading(self.engine) as connection:
                return connection.execute(select(Request.id).where(*mine).limit(1)).first() is not None

        return patiently(act)

    def send(self, call_id: str, seq: int, worst_microusd: int | None, price: str | None) -> Grant:
        """See ``Ledger``. A job without a budget row has no limit."""
        row = {
            "id": call_id,
            "job_id": self.job_id,
            "stage": self.stage,
            "seq": seq,
            "attempt": self.attempt,
            "state": "sent",
            "reserved_microusd": worst_microusd,
            "price": price,
        }

        def act() -> Grant:
            with self.engine.begin() as connection:
                if connection.scalar(select(Request.id).where(Request.id == call_id)):
                    return Grant.SENT  # a repetition of this step, after a commit whose answer was lost
                grant = _reserve(connection, self.job_id, worst_microusd)
                if grant is Grant.SENT:
                    connection.execute(insert(Request).values(**row, response=null(), sent_at=db_now()))
                return grant

        return patiently(act)

    def done(self, call_id: str, response: dict[str, Any], bill: Bill) -> None:
        """See ``Ledger``."""
        values = {
            "response": response,
            "tokens_in": bill.tokens_in,
            "tokens_cached": bill.tokens_cached,
            "tokens_out": bill.tokens_out,
            "cost_microusd": bill.cost_microusd,
            "price": bill.price,
            "error": None,
        }
        self._end(call_id, "done", values)

    def failed(self, call_id: str, error: str) -> None:
        """See ``Ledger``."""
        self._end(call_id, "failed", {"error": error, "cost_microusd": 0})

    def lost(self, call_id: str, error: str) -> None:
        """See ``Ledger``."""
        self._end(call_id, "lost", {"error": error})

    def expire(self, seconds: float) -> int:
        """See ``Ledger``."""
        overdue = (Request.job_id == self.job_id, Request.state == "sent", Request.sent_at < db_now() - seconds)

        def act() -> int:
            with self.engine.begin() as connection:
                calls = connection.scalars(select(Request.id).where(*overdue)).all()
                for call_id in calls:
                    _settle(connection, call_id, "lost", {"error": OVERDUE})
                return len(calls)

        return patiently(act)

    def pace(self, name: str, units: float, per_minute: float) -> float:
        """See ``Ledger``. GCRA without bursts: slots lie ``units * 60 / per_minute`` seconds apart."""
        key, cost = f"{self.job_id}:{self.stage}:{name}", units * 60.0 / per_minute
        now = db_now()
        begins = case((Pace.free_at > now, Pace.free_at), else_=now)
        take = update(Pace).where(Pace.name == key).values(free_at=begins + cost)

        def act() -> float:
            with self.engine.begin() as connection:
                insert_ignore(connection, Pace, [{"name": key, "free_at": 0.0}])
                wait = connection.execute(take.returning(Pace.free_at - cost - now)).scalar_one()
                return max(0.0, float(wait))

        return patiently(act)

    def money(self) -> tuple[int, int] | None:
        """See ``Ledger``."""
        query = select(Budget.spent_microusd, Budget.limit_microusd).where(Budget.job_id == self.job_id)

        def act() -> tuple[int, int] | None:
            with reading(self.engine) as connection:
                row = connection.execute(query).one_or_none()
            return row and (int(row[0]), int(row[1]))

        return patiently(act)

    def _of(self, seqs: Collection[int]) -> tuple[ColumnElement[bool], ...]:
        within = Request.seq.between(min(seqs), max(seqs))  # a range: a list may have more members than SQL allows
        return Request.job_id == self.job_id, Request.stage == self.stage, within

    def _end(self, call_id: str, state: str, values: dict[str, Any]) -> None:
        def act() -> None:
            with self.engine.begin() as connection:
                _settle(connection, call_id, state, values)

        patiently(act)


def _reserve(connection: Connection, job_id: str, worst: int | None) -> Grant:
    free = Budget.limit_microusd - Budget.spent_microusd
    taken = update(Budget).where(Budget.job_id == job_id, Budget.reserved_microusd + (worst or 0) <= free)
    if connection.execute(taken.values(reserved_microusd=Budget.reserved_microusd + (worst or 0))).rowcount:
        return Grant.SENT
    left = connection.scalar(select(free).where(Budget.job_id == job_id))
    if left is None:
        return Grant.SENT
    return Grant.NEVER if (worst or 0) > left else Grant.WAIT


def _settle(connection: Connection, call_id: str, state: str, values: dict[str, Any]) -> None:
    """End a call and move its money. A call taken for lost whose worker ends it after all is put right."""
    query = select(Request.job_id, Request.state, Request.reserved_microusd).where(Request.id == call_id)
    call = connection.execute(query.with_for_update()).one()
    if call.state not in ("sent", "lost") or call.state == state:
        return
    held = call.reserved_microusd or 0
    cost = values.get("cost_microusd")
    charge = held if cost is None else cost
    connection.execute(update(Request).where(Request.id == call_id).values(state=state, finished_at=db_now(), **values))
    move = {"spent_microusd": Budget.spent_microusd + charge - (held if call.state == "lost" else 0)}
    if call.state == "sent":
        move["reserved_microusd"] = Budget.reserved_microusd - held
    connection.execute(update(Budget).where(Budget.job_id == call.job_id).values(**move))


def _paid(row: Any) -> Paid:
    bill = Bill(row.tokens_in, row.tokens_cached, row.tokens_out, row.cost_microusd, row.price)
    return Paid(row.response, bill, max(0.0, row.finished_at - row.sent_at))


def forget_responses(engine: Engine, job_id: str) -> int:
    """Drop the stored answers of a job that is done: its rows are in Parquet. Bills stay. Returns how many."""
    kept = (Request.job_id == job_id, Request.state == "done", Request.response.is_not(null()))
    with engine.begin() as connection:
        return connection.execute(update(Request).where(*kept).values(response=null())).rowcount
