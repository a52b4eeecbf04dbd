"""The one task: claim a shard, run its stage, commit, ring for what follows."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import shared_task
from sqlalchemy.exc import SQLAlchemyError

from pipeline.lease import Lease
from pipeline.producer import DoorbellSilentError
from pipeline.storage import shards
from pipeline.storage.reaping import open_publications
from pipeline.storage.shards import Claim
from pipeline.storage.sql import patiently
from pipeline.work import DeviceLost, work_on
from workers.app import RUN_SHARD
from workers.doorbell import ring_due
from workers.heartbeat import Heartbeat
from workers.residency import Desk, desk
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

DEVICE_LOST_EXIT = 70  # EX_SOFTWARE; Celery starts a fresh child, the reaper takes the lease back


@shared_task(name=RUN_SHARD, bind=True, Strategy="workers.strategy:checked")  # type: ignore[untyped-decorator]
def run_shard(self: Any, job_id: str, shard_id: str) -> None:
    """Work on a shard, if it is still to be had. A message delivered twice, or late, ends here without effect."""
    here = desk()
    claim = patiently(lambda: shards.claim(here.engine, job_id, shard_id, here.owner, here.settings.lease_seconds))
    if claim is None:
        log.info("shard %s of job %s: nothing to claim", shard_id, job_id)
        return
    watchdog = Watchdog(here.settings.soft_time_limit, here.settings.time_limit)
    lease = Lease(
        here.engine,
        claim,
        lease_seconds=here.settings.lease_seconds,
        renew_seconds=here.settings.renew_seconds,
        beat=Heartbeat(here.broker, self.request.properties["delivery_tag"]),
        moved=watchdog.moved,
        asked_to_stop=here.stopping,
    )
    with watchdog, lease:
        try:
            ending = work_on(here.engine, claim, here.models, lease, here.settings.max_attempts)
        except DeviceLost as error:
            log.critical("shard %s of job %s: device lost: %s", shard_id, job_id, error)
            os._exit(DEVICE_LOST_EXIT)
    log.info("shard %s of job %s, attempt %d: %s", shard_id, job_id, claim.attempt, ending)
    _ring_for_what_follows(here, claim)


def _ring_for_what_follows(here: Desk, claim: Claim) -> None:
    """Without this the reaper would do it, seconds later. For no other shards: every child would ring for them all."""
    try:
        open_publications(here.engine, here.settings.max_attempts)
        ring_due(here.engine, here.doorbell, of=claim)
    except (DoorbellSilentError, SQLAlchemyError) as error:
        log.warning("left to the reaper: %s", error)
