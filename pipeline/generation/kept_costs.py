"""Costs in the cache: what one worker has measured, the next need not.

A file is read only by what would measure the same: the same weights in the same passes, by the same code, on the same
device of the same machine since it was started. And not on trust: two of its passes are timed again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import pipeline.passes
from pipeline.generation.costs import SCOPE, Costs, Make, hold, measured
from pipeline.models import LoadedModel
from schemas.settings import Settings

log = logging.getLogger(__name__)

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Drawn whenever a machine starts: no other has it, however alike."""

_TIMED = (
    "costs.py", "lines.py", "matching.py", "maxgram.py", "rounds.py", "sampling.py", "settling.py", "verifying.py",
    "vocabularies.py",
)  # fmt: skip
"""Beside passes."""

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may have of the processors."""


def kept_or_measured(
    loaded: LoadedModel, passes: str, translated: str | None, records: bool, make: Make, look: Callable[[], None]
) -> Costs:
    """What these ``passes`` of a model take, recorded if ``records``: as it was measured before, if that still holds,
    else measured (``costs.measured``) and kept. ``translated``: the digest of the target whose vocabulary it reads."""
    machine = _machine(loaded.device)
    about = {
        "scope": SCOPE, "model": loaded.ref.digest, "dtype": str(loaded.model.dtype), "passes": passes,
        "recorded": records, "translated": translated, "code": _code(), "machine": machine,
    }  # fmt: skip
    path = Settings().cache / "costs" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.json"
    found = _read(path, about) if machine else None
    if found and hold(found, make, records):
        return found
    if found:
        log.info("passes of %s take another time than when they were measured: once more", loaded.ref.name)
    found = measured(make, records, look)
    if machine:
        _keep(path, about, found)
    return found


@functools.cache
def _code() -> list[str]:
    """What is timed: passes, and what a round makes of them."""
    own, here = hashlib.sha256(), Path(__file__).parent
    for path in [*sorted(Path(pipeline.passes.__path__[0]).glob("*.py")), *(here / name for name in _TIMED)]:
        own.update(path.read_bytes())
    return [own.hexdigest(), torch.__version__, transformers.__version__]


def _machine(device: torch.device) -> dict[str, Any] | None:
    """What tells the device from any other; None where the system does not tell machines apart."""
    try:
        boot = BOOT.read_text().strip()
    except OSError:
        return None
    with contextlib.suppress(OSError):
        boot += f" {QUOTA.read_text().strip()}"
    cpus = [platform.node(), platform.machine(), len(os.sched_getaffinity(0)), torch.get_num_threads()]
    gpu: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {"boot": boot, "cpus": cpus, "device": gpu and [gpu.name, str(gpu.uuid), gpu.total_memory]}


def _read(path: Path, about: dict[str, Any]) -> Costs | None:
    """None where there are none, or other ones than ``about`` says."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["about"] != json.loads(json.dumps(about)):
            return None
        return Costs(np.array(said["seconds"], np.float64), about["recorded"])  # None is nan
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _keep(path: Path, about: dict[str, Any], costs: Costs) -> None:
    """Whole or not at all. A cache that cannot be written costs the next worker some seconds, nothing else."""
    rows = [[None if np.isnan(one) else float(one) for one in row] for row in costs.measured]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            partial.write_text(json.dumps({"about": about, "seconds": rows}), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
