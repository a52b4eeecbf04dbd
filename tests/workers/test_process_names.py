"""The name a lease is held under: which of them this machine may declare dead."""

from __future__ import annotations

import os
import subprocess
import sys

from workers.processes import dead_here, host, owner


def gone() -> str:
    """The name of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = owner(child.pid)
    child.communicate(b"\n")
    return name


def test_only_the_dead_of_this_very_machine_are_declared_dead() -> None:
    dead = gone()
    twin = dead.replace(host(), host().replace(host().split("/")[1], "another-boot"))
    assert twin != dead, "two machines made from one image, of the same name"
    assert dead_here([owner(), owner(os.getppid()), dead, twin]) == [dead]
