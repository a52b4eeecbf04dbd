"""One shard's documents behind a hosted endpoint: who may call when, what becomes of each call, when all must end."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import SecretStr

from pipeline.accounting.prices import cost_microusd
from pipeline.accounting.wording import counted
from pipeline.generation.answers import Done, accept, outcomes
from pipeline.generation.bounds import call_price, no_price, token_bound, worst_microusd
from pipeline.generation.endpoint import Answer, Endpoint, read_answer
from pipeline.generation.ledger import Bill, Grant, Ledger, Paid
from pipeline.generation.pacing import Window
from pipeline.generation.retries import WAITED_OUT, Failure, Patience
from pipeline.stages import BudgetReached, Halt, Outcome, Refusal, Run, Stopped
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec

GRACE_SECONDS = 20.0  # for calls in flight when the worker is told to stop; less than its own grace period
LOOK_SECONDS = 0.25  # how often it is asked whether to stop
BUDGET_POLL_SECONDS = 0.2
EXPIRE_EVERY = 5.0
EXPIRE_MARGIN = 60.0  # a call sent longer ago than its deadline and this has no live owner
FAILED_IN_A_ROW = 10  # documents: then it is the endpoint, not the documents
FIRST_CONTACT_SECONDS = 20.0  # without any connection, before an address that has never answered is taken for wrong

_in_a_row: dict[tuple[str, str], int] = {}
"""Documents that failed in a row, by job and endpoint: for the whole process, as a shard may hold fewer than a row."""

T = TypeVar("T")


class _Ending(Exception):  # noqa: N818
    """This document is left unanswered: the shard is ending."""


class HostedShard:
    """One use: ``answer`` once. All state lives in one event loop; the ledger's transactions run in one thread."""

    def __init__(
        self, spec: GenerateSpec, target: TargetSpec, api_key: SecretStr | None, ledger: Ledger, run: Run
    ) -> None:
        self.spec, self.target, self.ledger, self.run = spec, target, ledger, run
        self.price = call_price(spec, target)
        self.bound = token_bound(spec, target)
        self.endpoint = Endpoint(spec, target, api_key)
        self.window = Window(spec.concurrency)
        self.limited = False  # whether the job has a budget
        self.ending: Exception | None = None  # why no new call may start
        self.ended = asyncio.Event()
        self.met = False  # whether the endpoint was ever reached by this job
        self.answered = False  # ... and has answered a document of it
        self.tried: frozenset[int] = frozenset()  # documents that an earlier attempt called for
        self.row = (ledger.job_id, self.endpoint.url)
        self._thread = ThreadPoolExecutor(1)  # one: SQLite has one writer anyway, and threads would queue at its lock

    async def answer(self, documents: Sequence[Document]) -> list[Outcome]:
        """See ``HostedGenerator.run``."""
        began = time.monotonic()
        made: dict[int, Done | Refusal] = {}
        try:
            await self._check_budget()
            self.met = self.answered = await self._db(self.ledger.met)
            seqs = [document.seq for document in documents]
            self.tried = await self._db(self.ledger.tried, seqs)
            paid = await self._db(self.ledger.recall, seqs)
            await self._all(deque(documents), paid, made)
        finally:
            await self.endpoint.close()
            self._thread.shutdown()
        if isinstance(self.ending, Halt) or len(made) < len(documents):
            raise self.ending or self._budget_reached(len(documents) - len(made))
        return outcomes([made[document.seq] for document in documents], self.target.model, time.monotonic() - began)

    async def _all(self, queue: deque[Document], paid: dict[int, Paid], made: dict[int, Done | Refusal]) -> None:
        callers = [asyncio.create_task(self._caller(queue, paid, made)) for _ in range(self.spec.concurrency)]
        watcher = asyncio.create_task(self._watch())
        try:
            await self._until_over(callers, watcher)
        finally:
            for task in (*callers, watcher):
                task.cancel()  # what is in flight now stays written down as sent
            await asyncio.gather(*callers, watcher, return_exceptions=True)

    async def _until_over(self, callers: list[asyncio.Task[None]], watcher: asyncio.Task[None]) -> None:
        open_tasks = set(callers)
        while open_tasks:
            waited = {*open_tasks, watcher} if not watcher.done() else open_tasks
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # an error that is nobody's outcome (the database stays away) ends the shard
            open_tasks -= done
            if watcher in done and open_tasks:
                _, open_tasks = await asyncio.wait(open_tasks, timeout=GRACE_SECONDS)
                return

    async def _watch(self) -> None:
        """Returns once the worker is told to stop. Until then a sign of life: every wait here has its own bound.

        Only the database's thread can hang, which is why it is asked, and a shard it holds up is left to the watchdog.
        """
        alive = self._thread.submit(bool)
        while not await asyncio.to_thread(self.run.stopping):
            if alive.done():
                self.run.progress(0, 0)
                alive = self._thread.submit(bool)
            await asyncio.sleep(LOOK_SECONDS)
        self._end(Stopped())

    def _end(self, reason: Exception) -> None:
        self.ending = self.ending or reason
        self.ended.set()

    async def _caller(self, queue: deque[Document], paid: dict[int, Paid], made: dict[int, Done | Refusal]) -> None:
        while queue and not self.ending:
            document = queue.popleft()
            try:
                outcome = await self._one(document, paid.get(document.seq))
            except _Ending:
                continue
            if outcome is not None:
                made[document.seq] = outcome
                self.run.progress(1, outcome.tokens if isinstance(outcome, Done) else 0)

    async def _one(self, document: Document, paid: Paid | None) -> Done | Refusal | None:
        """The document's outcome; ``None`` if there is no money for it."""
        if paid:
            return accept(read_answer(paid.response), paid.bill, paid.seconds, self.spec.stop)
        if not document.prompt.strip():
            return Refusal("empty", "the prompt is empty or only whitespace; there is nothing to answer")
        patience = Patience(self.spec.deadline_seconds, self.spec.max_retries)
        while True:
            asked, call_id = time.monotonic(), uuid.uuid4().hex
            async with self.window.slot():
                if not await self._admitted(document, call_id):
                    return None
                patience.excuse(time.monotonic() - asked)
                sent_at = time.monotonic()
                found = await self.endpoint.call(document, call_id, max(0.1, patience.left()))
                if isinstance(found, Answer):
                    return await self._answered(found, call_id, patience)
                await self._settle(call_id, found, sent_at)
            wait = self._wait(found, patience)
            if wait is None:
                return await self._given_up(document.seq, found, patience)
            await self._sleep(wait)

    async def _admitted(self, document: Document, call_id: str) -> bool:
        """Wait for a slot of the rate and for money, then write the call down. False: there is no money for it."""
        text = "\n".join(part for part in (self.spec.system, document.prompt) if part)
        worst = worst_microusd(self.price, self.bound.most(text), self.spec.max_new_tokens)
        if not await self._affordable(worst):
            return False
        await self._pace(text)
        return await self._money(document, call_id, worst) is Grant.SENT

    async def _affordable(self, worst: int | None) -> bool:
        """Whether there may be money for it: asked first, so that no slot of the rate is waited for in vain."""
        if not self.limited or worst is None:
            return True
        money = await self._db(self.ledger.money)
        return money is None or money[0] + worst <= money[1]

    async def _check_budget(self) -> None:
        # The job's budget row decides, not the spec it was submitted with: a resumed job may have got one since.
        self.limited = await self._db(self.ledger.money) is not None
        if self.spec.budget_usd is not None and not self.limited:
            raise ValueError("budget_usd is set, and the job has no budget row to hold it: call ensure_budget first")
        if self.limited and worst_microusd(self.price, 1, 1) is None:
            raise no_price(self.target)

    async def _pace(self, text: str) -> None:
        wait = 0.0
        if self.spec.requests_per_minute:
            wait = await self._db(self.ledger.pace, "requests", 1, self.spec.requests_per_minute)
        if self.spec.tokens_per_minute:
            units = self.bound.likely(text) + self.spec.max_new_tokens
            wait = max(wait, await self._db(self.ledger.pace, "tokens", units, self.spec.tokens_per_minute))
        await self._sleep(wait)

    async def _money(self, document: Document, call_id: str, worst: int | None) -> Grant:
        looked = time.monotonic()
        price = self.price.id if self.price else None
        while (grant := await self._db(self.ledger.send, call_id, document.seq, worst, price)) is Grant.WAIT:
            await self._sleep(BUDGET_POLL_SECONDS)
            if time.monotonic() - looked > EXPIRE_EVERY:
                await self._db(self.ledger.expire, self.spec.deadline_seconds + EXPIRE_MARGIN)
                looked = time.monotonic()
        return grant

    async def _answered(self, answer: Answer, call_id: str, patience: Patience) -> Done | Refusal:
        latency = patience.used()
        cached = answer.tokens_cached or 0
        plain = answer.tokens_in - cached - answer.tokens_written
        cost = cost_microusd(self.price, plain, cached, answer.tokens_out, cache_write=answer.tokens_written)
        price = self.price.id if self.price else None
        bill = Bill(answer.tokens_in, answer.tokens_cached, answer.tokens_out, cost, price)
        await self._db(self.ledger.done, call_id, answer.response, bill)
        self.met = self.answered = True
        self.window.answered()
        _in_a_row.pop(self.row, None)
        return accept(answer, bill, latency, self.spec.stop)

    async def _settle(self, call_id: str, failure: Failure, sent_at: float) -> None:
        await self._db(self.ledger.lost if failure.billed else self.ledger.failed, call_id, failure.detail)
        if failure.code == "rate_limited":
            self.window.limited(sent_at)
        if failure.code == "refused":
            self._end(Halt(f"{self.endpoint.url} refuses this job: {failure.detail}. {_remedy(failure.detail)}"))

    def _wait(self, failure: Failure, patience: Patience) -> float | None:
        """``patience.wait``, but shorter where nobody was ever met: a slip in the address, more likely than a pause."""
        wait = patience.wait(failure)
        self.met = self.met or failure.code != "unreachable"
        left = FIRST_CONTACT_SECONDS - patience.used()
        if wait is None or self.met:
            return wait
        return min(wait, left) if left > 0 else None

    async def _given_up(self, seq: int, failure: Failure, patience: Patience) -> Refusal:
        tries = f"after {patience.tries} tries in {patience.used():.0f} s"
        if failure.code == "unreachable":
            self._end(Halt(f"{self.endpoint.url} cannot be reached: {failure.detail}, {tries}. Check base_url"))
        if failure.code == "prompt_too_long":
            return Refusal(failure.code, f"{failure.detail}. Compress it before this stage, or use a larger window")
        if not await self._own_fault(seq, failure):
            self._failed_again(f"the last {tries}: {failure.detail}")
        if failure.code == "endpoint_error":
            return Refusal(failure.code, failure.detail)
        more = "; requests_per_minute or a longer deadline_seconds helps" if failure.code in WAITED_OUT else ""
        return Refusal(failure.code, f"{failure.detail} ({tries}{more})", dead=True)

    async def _own_fault(self, seq: int, failure: Failure) -> bool:
        """Whether a failure says nothing of the endpoint."""
        if seq in self.tried:  # counted then; counted again, the same few documents would stop every resumed job
            return True
        if failure.code != "endpoint_error":
            return False
        self.answered = self.answered or await self._db(self.ledger.met)  # another worker may have had the first answer
        return self.answered

    def _failed_again(self, how: str) -> None:
        if self.ending:
            return
        failed = _in_a_row[self.row] = _in_a_row.get(self.row, 0) + 1
        if failed >= FAILED_IN_A_ROW:
            del _in_a_row[self.row]  # a resumed job begins anew
            url = self.endpoint.url
            self._end(Halt(f"{url}: {failed} documents in a row failed, {how}. Mend that and resume the job"))

    async def _sleep(self, seconds: float) -> None:
        """Sleep, unless the shard is ending: then raise ``_Ending`` at once."""
        if seconds > 0 and not self.ending:
            try:
                await asyncio.wait_for(self.ended.wait(), seconds)
            except TimeoutError:
                return
        if self.ending:
            raise _Ending

    async def _db(self, action: Callable[..., T], *args: Any) -> T:
        # The thread ends what it began even when this task is cancelled: no transaction is left half-way.
        return await asyncio.get_running_loop().run_in_executor(self._thread, action, *args)

    def _budget_reached(self, left: int) -> BudgetReached:
        spent, limit = self.ledger.money() or (0, 0)
        return BudgetReached(
            f"budget reached: {_usd(spent)} of {_usd(limit)} dollars are spent and the rest is less than the next call "
            f"may cost; {counted(left, 'document')} of this shard unanswered. Run it again with a higher budget_usd"
        )


def _usd(microusd: int) -> str:
    return f"{Decimal(microusd).scaleb(-6):.6f}"


def _remedy(detail: str) -> str:
    if detail.startswith(("HTTP 401", "HTTP 403")):
        return "Check CONTEXTMILL_API_KEY and what it may use"
    if detail.startswith(("HTTP 402", "HTTP 429")):
        return "Check the account's balance and limits"
    return "Check base_url, [target] model and the stage's settings"
