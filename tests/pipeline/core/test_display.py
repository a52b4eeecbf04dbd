"""What the progress of a job says of its stages."""

from __future__ import annotations

import io

from rich.console import Console

from pipeline.display import _bars, print_models, print_snapshot
from pipeline.models import ModelStatus
from pipeline.watching import Snapshot, StageProgress


def test_a_stage_that_is_through_has_no_speed() -> None:
    """That of its last seconds would be shown falling towards 0 for as long as the next stage takes."""
    through = StageProgress("compress", 24, 24, 19_353, 0.01, 2.0)
    at_work = StageProgress("generate", 18, 24, 1_728, 2.0, 219.0)
    said = Console(file=io.StringIO(), width=200)
    print_snapshot(Snapshot("j", "running", None, (through, at_work), 1, 1), said)
    assert isinstance(said.file, io.StringIO)
    text = "j running: compress 24/24 documents; generate 18/24 documents, 219 tokens/s, 0:03 left\n"
    assert said.file.getvalue() == text


def test_one_of_a_thing_is_one() -> None:
    shot = Snapshot("j", "running", None, (StageProgress("copy", 0, 1, 0, 0.0, None),), 1, 1)
    line, live = Console(file=io.StringIO(), width=200), Console(file=io.StringIO(), width=200, force_terminal=True)
    print_snapshot(shot, line)
    live.print(_bars(shot))
    assert isinstance(line.file, io.StringIO) and isinstance(live.file, io.StringIO)
    assert line.file.getvalue() == "j running: copy 0/1 document\n"
    assert "1 shard in work" in live.file.getvalue()


def test_a_training_says_its_step_and_its_loss() -> None:
    stage = StageProgress("pretrain", 9, 60, 4_000, 1.0, 800.0, "step 150 of 1,000, loss 2.345")
    shot = Snapshot("j", "running", None, (stage,), 1, 1)
    line, live = Console(file=io.StringIO(), width=200), Console(file=io.StringIO(), width=200, force_terminal=True)
    print_snapshot(shot, line)
    live.print(_bars(shot))
    assert isinstance(line.file, io.StringIO) and isinstance(live.file, io.StringIO)
    said = "j running: pretrain 9/60 documents, step 150 of 1,000, loss 2.345, 800 tokens/s, 0:51 left\n"
    assert line.file.getvalue() == said
    assert "pretrain: step 150 of 1,000, loss 2.345" in live.file.getvalue()


def test_a_model_that_cannot_be_used_says_why() -> None:
    said = io.StringIO()
    print_models([ModelStatus("m[1]", "here", "", 0, "damaged", "model.safetensors is missing")], Console(file=said))
    (line,) = said.getvalue().splitlines()[1:]
    assert line.split() == ["m[1]", "damaged", "here", "model.safetensors", "is", "missing"]
