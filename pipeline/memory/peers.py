"""The other processes of a training: started by the first, fed through a pipe, gone when it is.

python -m pipeline.memory.peers     # what the first one starts, once for each
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

import torch
import torch.distributed as dist

from pipeline.holding_out import in_order
from pipeline.memory.beginning import begun, is_half
from pipeline.memory.sharing import LAST, Alone, Group
from pipeline.memory.stage import Finetune, Pretrain, Training
from pipeline.memory.training import Diverged, Trainer
from pipeline.models import ModelPool
from pipeline.stages import Halt
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.memory import FinetuneSpec, PretrainSpec

HERE = "127.0.0.1"
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
            started.enter_context(_started(_told(stage, documents, rank, world, store.port, device)))
            for rank in range(1, world)
        ]
        while not store.check([f"ready-{rank}" for rank in range(1, world)]):
            _look(others)
            alive()
            time.sleep(0.05)
        group = Group(0, world, store, device, lambda: _look(others))
        yield group
        group.announce(LAST)


def _told(
    stage: Training, documents: Sequence[Document], rank: int, world: int, port: int, first: torch.device
) -> bytes:
    """What one of them needs to be the equal of the first, in a line."""
    rows = [[one.seq, one.id, asdict(one.parts), one.content_hash, one.answer] for one in documents]
    spec, target = stage.spec.model_dump(mode="json"), stage.target.model_dump(mode="json")
    device = f"cuda:{rank}" if first.type == "cuda" else "cpu"
    said = {"spec": spec, "target": target, "documents": rows}
    return json.dumps({**said, "rank": rank, "world": world, "port": port, "device": device}).encode() + b"\n"


def _heard(line: bytes) -> tuple[Training, list[Document], dict[str, Any]]:
    said = json.loads(line)
    target = TargetSpec.model_validate(said["target"])
    stage = (
        Pretrain(PretrainSpec.model_validate(said["spec"]), target)
        if said["spec"]["kind"] == "pretrain"
        else Finetune(FinetuneSpec.model_validate(said["spec"]), target)
    )
    documents = [
        Document(seq, name, PromptParts(**{**parts, "contexts": tuple(parts["contexts"])}), content, answer=answer)
        for seq, name, parts, content, answer in said["documents"]
    ]
    return stage, documents, said


@contextlib.contextmanager
def _started(told: bytes) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    path = os.pathsep.join(one for one in sys.path if one)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE, stdout=said, stderr=said,
            env={**os.environ, "PYTHONPATH": path},
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it is gone already, which is seen later
                process.stdin.write(told)
                process.stdin.flush()
            yield process, said
        finally:
            process.kill()


def _look(others: Sequence[tuple[subprocess.Popen[bytes], IO[bytes]]]) -> None:
    for process, said in others:
        if process.poll() is not None:
            said.seek(0)
            text = said.read().decode(errors="replace").strip()[-TAIL:]
            raise PeerLost(
                f"a process of the training ended with code {process.returncode}: {text or 'without a word'}"
            )


def main() -> None:
    """Take each step that the first one announces, until it announces the last or is gone."""
    stage, documents, said = _heard(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_the_first, daemon=True).start()
    spec, rank, world = stage.spec, said["rank"], said["world"]
    loaded = ModelPool(said["device"]).own_copy(stage.target.model, spec.dtype, said["device"])
    plan = stage.plan(in_order(documents), loaded, lambda: None)
    trainer = Trainer(begun(spec, loaded, plan, stage.beginning()), spec, is_half(spec))
    store = dist.TCPStore(HERE, said["port"], world, is_master=False)  # type: ignore[attr-defined]
    store.set(f"ready-{rank}", "")
    group = Group(rank, world, store, loaded.device)
    trainer.share(group)
    trainer.restore(group.begun())
    with contextlib.suppress(Diverged):  # the first one says so
        while (number := group.heard()) != LAST:
            trainer.step(number, *plan.parts(number, rank, world))


def _leave_with_the_first() -> None:
    """The pipe ends with the one that holds its other end, however that goes."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
