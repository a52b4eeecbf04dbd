"""One of the other processes of a training: what it is told, and how it takes its share of each step.

python -m pipeline.memory.peer     # what the first one starts, once for each (``peers``)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from pipeline.holding_out import in_order
from pipeline.memory.beginning import begun, is_half
from pipeline.memory.sharing import LAST, Group, meeting
from pipeline.memory.stage import Finetune, Pretrain, Training
from pipeline.memory.training import Diverged, Trainer
from pipeline.models import ModelPool
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.memory import FinetuneSpec, PretrainSpec


def told(
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


def main() -> None:
    """Take each step that the first one announces, until it announces the last or is gone."""
    stage, documents, said = _heard(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_the_first, daemon=True).start()
    spec, rank, world = stage.spec, said["rank"], said["world"]
    loaded = ModelPool(said["device"]).own_copy(stage.target.model, spec.dtype, said["device"])
    plan = stage.plan(in_order(documents), loaded, lambda: None)
    trainer = Trainer(begun(spec, loaded, plan, stage.beginning()), spec, is_half(spec))
    store, board = meeting(said["port"], world), meeting(said["port"], world)
    store.set(f"ready-{rank}", "")
    group = Group(rank, world, store, loaded.device, board=board)
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
