"""An endpoint that says when to come again is not asked before: by the clock, not by what a header parses to."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hosted_rig import documents, generator, results, run_with
from openai_server import FakeOpenAI, Served, reply
from sqlalchemy import Engine

SECONDS = 2.0  # the first wait of our own choosing is at most half a second


class Busy(FakeOpenAI):
    """Turns the first call away for ``SECONDS``, in a ``kind`` of words."""

    kind = "seconds"

    async def _answer(self, path: str, headers: dict[str, str], request: dict[str, Any], send: Any) -> None:
        if self.arrivals:
            return await super()._answer(path, headers, request, send)
        self.arrivals.append(time.monotonic())
        # A date knows whole seconds only: one more, so that what is left of this second does not count.
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + SECONDS + 1))
        asks = date if self.kind == "date" else str(SECONDS)
        return await reply(send, 429, {"error": {"message": "slow down"}}, {"retry-after": asks})


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_an_endpoint_is_asked_again_no_sooner_than_it_says(engine: Engine, kind: str) -> None:
    server = Busy()
    server.kind = kind
    with Served(server) as url:
        results(generator(url).run(documents(1), run_with(engine)))
    first, second = server.arrivals
    assert SECONDS - 0.5 < second - first < SECONDS + 20
