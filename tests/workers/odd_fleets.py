"""Fleets whose ``copy`` stage obeys the documents (``odd_worker``), such documents, and how long servers stay away."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fleet import PATIENT, Fleet

ODD_WORKER = Path(__file__).parent / "odd_worker.py"
LONG = bool(os.environ.get("LONG"))
AWAY_SECONDS = 60.0 if LONG else 6.0  # longer than a lease; LONG=1: as long as the promise says


def gated(number: int, gate: Path, words: str = "sleep 0.1 {}") -> Callable[[int], str]:
    """The texts of ``number`` documents, the last of which waits for ``gate``: no job is over before it is struck."""
    return lambda index: f"wait until {gate}" if index == number - 1 else words.format(index)


def odd_fleet(folder: Path, database_url: str, broker_url: str, timings: Mapping[str, float] = PATIENT) -> Fleet:
    """A fleet without workers yet, none of which loses a lease for being slow."""
    roots = f"{Path(__file__).parent}:{Path(__file__).parent.parent.parent}"
    environment = {"ODD_LOG": str(folder / "odd.log"), "PYTHONPATH": roots}
    return Fleet(folder, database_url, broker_url, timings, environment, entry=(str(ODD_WORKER), "worker"))
