"""Who holds a lease: a name for this process that nobody else ever bears, and whether such a one still lives."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterable
from pathlib import Path


@functools.cache
def host() -> str:
    """This machine, as it was booted, and its space of process ids.

    A host name alone says too little: machines made from one image share it, and the first space of process ids has
    one number on every Linux. They would take each other's workers for dead, again and again.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        boot = "boot"
    try:
        space = Path("/proc/self/ns/pid").readlink().name
    except OSError:  # not Linux: one space per host
        space = "pid"
    return f"{socket.gethostname()}/{boot}/{space}"


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot: tells it from a later one of the same id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    return stat.rpartition(")")[2].split()[19]


def owner(pid: int | None = None) -> str:
    """``host:pid:start`` of a process, this one by default."""
    pid = pid or os.getpid()
    return f"{host()}:{pid}:{_started(pid)}"


def dead_here(owners: Iterable[str]) -> list[str]:
    """Those of ``owners`` that ran on this host and run no more."""
    return [name for name in owners if name.startswith(f"{host()}:") and not _alive(name)]


def _alive(name: str) -> bool:
    pid = int(name.rsplit(":", 2)[1])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner(pid) == name and not _zombie(pid)


def _zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
