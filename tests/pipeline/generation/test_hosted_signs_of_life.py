"""A hosted shard that waits is alive, and says so; one whose database hangs does not."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hosted_rig import JOB, documents, generator, results, run_with
from openai_server import FakeOpenAI, Served
from sqlalchemy import Engine

from pipeline.generation.hosted import HostedGenerator
from pipeline.stages import Run
from pipeline.storage.requests import SqlLedger

WAIT = 2.0


class Hanging(SqlLedger):
    """A database that does not answer for a while."""

    def pace(self, name: str, units: float, per_minute: float) -> float:
        time.sleep(WAIT)
        return super().pace(name, units, per_minute)


def longest_silence(asked: HostedGenerator, number: int, run: Run, start: int = 0) -> float:
    signs = [time.monotonic()]
    results(asked.run(documents(number, start), replace(run, progress=lambda *_: signs.append(time.monotonic()))))
    signs.append(time.monotonic())
    assert signs[-1] - signs[0] > WAIT
    return max(after - before for before, after in pairwise(signs))


@pytest.mark.parametrize(
    ("server", "settings"),
    [
        (FakeOpenAI(seconds=WAIT + 0.2), {}),
        (FakeOpenAI(), {"requests_per_minute": 25}),
    ],
    ids=["a slow answer", "a slot of the rate"],
)
def test_a_shard_that_waits_gives_signs_of_life(engine: Engine, server: FakeOpenAI, settings: dict[str, Any]) -> None:
    with Served(server) as url:
        # One time of three: a machine that has no time for us is silent, too.
        silences = (longest_silence(generator(url, **settings), 2, run_with(engine), start) for start in (0, 2, 4))
        assert any(silence < 0.9 * WAIT for silence in silences)


def test_a_hanging_database_gives_none(engine: Engine) -> None:
    run = replace(run_with(engine), ledger=Hanging(engine, JOB, 0, 1))
    with Served(FakeOpenAI()) as url:
        assert longest_silence(generator(url, requests_per_minute=6000), 1, run) > 0.9 * WAIT
