"""The other processes of a training (``peer``): started by the first, fed through a pipe, gone when it is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import torch
import torch.distributed as dist

from pipeline.memory import peer
from pipeline.memory.sharing import HERE, LAST, Alone, Group
from pipeline.memory.stage import Training
from pipeline.stages import Halt
from schemas.document import Document

TAIL = 2_000
"""Characters of what a lost one said last."""


class PeerLost(RuntimeError):  # noqa: N818
    """Another process of the training is gone."""


def world_of(stage: Training, device: torch.device) -> int:
    """How many processes share a step. Raises ``Halt`` where there are not as many GPUs."""
    wanted = stage.spec.processes
    if device.type != "cuda":
        return wanted or 1
    there = torch.cuda.device_count()
    if wanted > there:
        raise Halt(
            f"{stage.spec.kind}: processes = {wanted} need a GPU each, and there are {there}: set it to 0 for all"
        )
    return wanted or there


@contextlib.contextmanager
def shared(
    stage: Training, documents: Sequence[Document], device: torch.device, alive: Callable[[], None]
) -> Iterator[Alone]:
    """The processes of ``stage``, of which this is the first. ``alive`` is called while they start, and may raise."""
    world = world_of(stage, device)
    if world == 1:
        yield Alone()
        return
    try:
        yield from _together(stage, documents, device, world, alive)
    finally:  # the others are gone by now, and cannot be waited for
        if dist.is_initialized():
            dist.destroy_process_group()


def _together(
    stage: Training, documents: Sequence[Document], device: torch.device, world: int, alive: Callable[[], None]
) -> Iterator[Alone]:
    store = dist.TCPStore(HERE, 0, world, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with contextlib.ExitStack() as started:
        others = [
            started.enter_context(_started(peer.told(stage, documents, rank, world, store.port, device)))
            for rank in range(1, world)
        ]
        while not store.check([f"ready-{rank}" for rank in range(1, world)]):
            _look(others)
            alive()
            time.sleep(0.05)
        group = Group(0, world, store, device, lambda: _look(others))
        yield group
        group.announce(LAST)


@contextlib.contextmanager
def _started(line: bytes) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    path = os.pathsep.join(one for one in sys.path if one)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", peer.__name__], stdin=subprocess.PIPE, stdout=said, stderr=said,
            env={**os.environ, "PYTHONPATH": path},
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        try:
            feeding = threading.Thread(target=_feed, args=(process.stdin, line))  # it reads once it has imported torch
            feeding.start()
            yield process, said
        finally:
            process.kill()
            feeding.join()
            with contextlib.suppress(OSError):  # what it did not read is flushed once more
                process.stdin.close()


def _feed(to: Any, line: bytes) -> None:
    with contextlib.suppress(OSError):  # it is gone already, which is seen elsewhere
        to.write(line)
        to.flush()


def _look(others: Sequence[tuple[subprocess.Popen[bytes], IO[bytes]]]) -> None:
    for process, said in others:
        if process.poll() is not None:
            said.seek(0)
            text = said.read().decode(errors="replace").strip()[-TAIL:]
            raise PeerLost(
                f"a process of the training ended with code {process.returncode}: {text or 'without a word'}"
            )
