"""How many calls are in flight: additive increase, multiplicative decrease, as in TCP (Chiu and Jain, 1989)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Window:
    """At most ``limit`` calls in flight. A 429 halves the limit, a window's worth of answers widens it by one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._cut_at = float("-inf")

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place in the window and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    def answered(self) -> None:
        """A call was answered."""
        self.limit = min(float(self.most), self.limit + 1.0 / self.limit)

    def limited(self, sent_at: float) -> None:
        """A call sent at this moment (``time.monotonic``) met a rate limit."""
        if sent_at > self._cut_at:  # calls that were in flight at the last cut say nothing about the window since
            self.limit = max(1.0, self.limit / 2)
            self._cut_at = time.monotonic()
