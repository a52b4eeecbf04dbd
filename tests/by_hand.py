"""Shards claimed and worked on in the test's own process, without a worker or a broker."""

from __future__ import annotations

from sqlalchemy import Engine, select

from pipeline.lease import Lease
from pipeline.models import ModelPool
from pipeline.storage import shards
from pipeline.storage.reaping import open_publications
from pipeline.storage.shards import Claim
from pipeline.work import work_on
from schemas.tables import Shard


class Silent:
    """A doorbell nobody hears: these tests claim by themselves."""

    def ring(self, job_id: str, shard_id: str, kind: str, priority: str) -> None:
        del job_id, shard_id, kind, priority


def open_shards(engine: Engine, job: str) -> list[str]:
    """Those that wait, the first stage's first."""
    waiting = select(Shard.id).where(Shard.job_id == job, Shard.state == "pending")
    with engine.connect() as connection:
        return list(connection.scalars(waiting.order_by(Shard.stage, Shard.start)))


def take(engine: Engine, job: str, shard: str, owner: str = "test") -> Claim:
    """A claim that nobody disputes."""
    claim = shards.claim(engine, job, shard, owner, 60.0)
    assert claim is not None
    return claim


def do(engine: Engine, claim: Claim) -> str:
    """Work on it: the ending."""
    with Lease(engine, claim, lease_seconds=60, renew_seconds=15) as lease:
        return work_on(engine, claim, ModelPool(), lease, 3)


def do_all(engine: Engine, job: str) -> None:
    """Everything that waits now. What waits because of it is left, a publication too, which is opened."""
    for shard in open_shards(engine, job):
        assert do(engine, take(engine, job, shard)) == "done"
    open_publications(engine, 3)


def work_through(engine: Engine, job: str) -> None:
    """Everything a worker would do, one shard after the other, the publication included."""
    open_publications(engine, 3)
    while open_shards(engine, job):
        do_all(engine, job)
