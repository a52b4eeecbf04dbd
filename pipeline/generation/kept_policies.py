"""What ``draft_tokens = "auto"`` chose, beside a job's data: ``drafting-HOST-PID.json``, a file of each worker, written
anew after each of its shards."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.generation.paces import Way
from pipeline.generation.policy import Policy
from pipeline.models import LoadedModel
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import write_whole

log = logging.getLogger(__name__)

_CHOSEN: dict[str, dict[Hashable, Counter[Way]]] = {}
"""Rounds that went each way, by the stage's folder and the kind of engine."""


@contextmanager
def noted(loaded: LoadedModel, drafters: Sequence[LoadedModel], folder: str | None) -> Iterator[None]:
    """Note in ``folder``, if there is one, which ways the rounds of a shard go."""
    before = {key: Counter(policy.taken) for key, policy in _policies(loaded).items()}
    yield
    if folder is None:
        return
    chosen = _CHOSEN.setdefault(folder, {})
    for key, policy in _policies(loaded).items():
        chosen.setdefault(key, Counter()).update(policy.taken - before.get(key, Counter()))
    names = {one.ref.digest: one.ref.name for one in drafters}
    kinds = [_told(key, rounds, _policies(loaded).get(key), names) for key, rounds in chosen.items() if rounds]
    if kinds:
        _write(folder, {"model": loaded.ref.name, "device": str(loaded.device), "drafted": kinds})


def _policies(loaded: LoadedModel) -> dict[Any, Policy]:
    """By ``Kind.key``."""
    found: dict[Any, Policy] = vars(loaded.model).get("contextmill_policies", {})
    return found


def _told(key: Any, rounds: Counter[Way], policy: Policy | None, names: dict[str, str]) -> dict[str, Any]:
    """``expected``: tokens of a round by the drafts that are checked in it, none first, by what passed lately."""
    passes, plan, drafters, *_ = key
    ways = [{"drafter_rounds": one.rounds, "tokens": one.width, "times": times} for one, times in rounds.most_common()]
    return {
        "passes": passes.__name__,
        "drafters": [names.get(one, one) for one in drafters],
        "most_rounds": plan.rounds,
        "ways": ways,
        "expected": policy.expected() if policy else None,
    }


def _write(folder: str, said: dict[str, Any]) -> None:
    """Answers do not hang on it."""
    fs, root = resolve_path(folder)
    try:
        write_whole(fs, f"{root}/drafting-{platform.node()}-{os.getpid()}.json", json.dumps(said, indent=1).encode())
    except OSError as error:
        log.warning("which drafts were chosen is not kept in %s: %s", folder, error)
