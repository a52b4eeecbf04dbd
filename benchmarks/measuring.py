"""What the speed benchmarks share: timing, the machine's facts, time on the device, and where figures go."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.compression.scoring import Scorer
from pipeline.generation.timing import timed as once
from pipeline.generation.timing import wait

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds over several runs of the same work."""

    median: float
    lowest: float
    highest: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """The spread of at least one measurement."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def timed(work: Callable[[], T], runs: int, device: torch.device) -> tuple[T, Spread]:
    """The last result of ``work``, and the seconds of each of its ``runs``, until the device is idle again."""
    found = [once(work, device) for _ in range(runs)]
    return found[-1][0], Spread.of([seconds for _, seconds in found])


def spent(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result of ``work``, and its seconds; on a CPU those of the process, whatever else the machine does: compare
    them with others of as many threads."""
    if device.type == "cuda":
        return once(work, device)
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def kernel_seconds(work: Callable[[], Any], device: torch.device) -> float | None:
    """Seconds in which at least one kernel or copy ran while ``work`` did; None where there is no GPU.

    Overlapping kernels count once. Compare it with the time of the same work unprofiled: the profiler slows the host.
    """
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        wait(device)
    # The profile's own table would make an object of each of millions of events.
    profiler: Any = profile.profiler
    events = profiler.kineto_results.events()
    on_device = [(one.start_ns(), one.end_ns()) for one in events if one.device_type().name == "CUDA"]
    return covered(np.array(on_device, dtype=np.int64).reshape(-1, 2)) / 1e9


def covered(spans: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """The length of the union of the spans ``[n, 2]``."""
    if not len(spans):
        return 0.0
    spans = spans[np.argsort(spans[:, 0])]
    begins, ends = spans[:, 0], np.maximum.accumulate(spans[:, 1])
    gaps = np.maximum(0, begins[1:] - ends[:-1])
    return float(ends[-1] - begins[0] - gaps.sum())


@torch.inference_mode()
def ceilings(scorer: Scorer, length: int) -> dict[str, float]:
    """Tokens per second of the bare model over full batches of ``length``, read as the engines read it: the trunk
    alone, and with head and log-sum-exp over the vocabulary. No cache, no padding, no selection."""
    tokens, runs = (scorer.batch_tokens, 5) if scorer.device.type == "cuda" else (1024, 2)
    rows = max(1, tokens // length)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, scorer.head.weight.shape[0], rows * length))
    ids, lengths = ids.to(scorer.device), np.full(rows, length)

    def trunk() -> torch.Tensor:
        return scorer.states(ids, lengths)

    def with_head() -> torch.Tensor:
        return scorer.surprisal(trunk(), ids)

    rates = {}
    for name, work in (("forward", trunk), ("forward_and_head", with_head)):
        timed(work, 1, scorer.device)
        rates[name] = round(ids.numel() / timed(work, runs, scorer.device)[1].median, 1)
    return rates


def facts(device: torch.device, dtype: str) -> dict[str, Any]:
    """Date, hardware, versions, load and command: what a figure is worth nothing without."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads",
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "dtype": dtype,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_shown, sys.argv[1:])]),
    }


def save(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures as JSON where a file was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """The rows as text, numbers to the right."""
    cells = [[*columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shown(argument: str) -> str:
    """An argument as it may be published: of a path that begins at the root, its last name."""
    return Path(argument).name if argument.startswith("/") else argument


def _commit() -> str | None:
    """The checkout's commit, and whether it has changed since; outside a checkout what $COMMIT says."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT")
