"""A worker whose ``copy`` stage does what the documents say: sleep, wait, raise, die. All else is the product.

Run as the worker's main script, which a spawned child imports again: so the registry is changed there too. Each
document that is worked on is one line of the file ``ODD_LOG``: what was done twice shows there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.copying import Copy
from pipeline.stages import STAGES, Outcome, Result, Run, Stopped
from pipeline.storage import publication, sql
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import CopySpec

STAGES["copy"] = "odd_worker:OddCopy"


def _slow_link(source: Path, target: Path) -> None:
    """For ``ODD_LINK_SECONDS``: a publication that takes time at every file."""
    LINK(source, target)
    time.sleep(float(os.environ["ODD_LINK_SECONDS"]))


LINK = publication._link
if "ODD_LINK_SECONDS" in os.environ:
    publication._link = _slow_link
if "ODD_PATIENCE" in os.environ:  # seconds that a database may be away before a shard fails, in place of 90
    (sql.patiently.__kwdefaults__ or {})["seconds"] = float(os.environ["ODD_PATIENCE"])


@dataclass(frozen=True, slots=True)
class OddCopy:
    """``sleep S`` takes time and asks whether to stop; ``deaf S`` does not ask; ``raise`` and ``die`` do so.

    ``raise until FILE`` and ``die until FILE`` only while there is no such file, and ``wait until FILE`` takes until
    there is one, and asks.
    """

    spec: CopySpec
    target: TargetSpec

    def identity(self) -> Any:
        """That of the stage it stands in for, with which the job was submitted."""
        return Copy(self.spec, self.target).identity()

    def work_seconds(self, characters: int) -> float:
        return 1e-6 + characters * 1e-9

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        for document in documents:
            _obey(document, run)
            with Path(os.environ["ODD_LOG"]).open("a") as log:
                log.write(f"{document.id}\n")
            run.progress(1, 1)
        return [Result({}, tokens_in=1) for _ in documents]


def _obey(document: Document, run: Run) -> None:
    word, _, rest = document.prompt.partition(" ")
    if word in ("sleep", "deaf"):
        end = time.monotonic() + float(rest.split()[0])
        while time.monotonic() < end:
            _pause(run, word == "sleep")
    elif word == "wait":
        while _still(rest):
            _pause(run, True)
    elif word in ("raise", "die") and _still(rest):
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("this document cannot be worked on")


def _pause(run: Run, asks: bool) -> None:
    if asks and run.stopping():
        raise Stopped
    time.sleep(0.02)


def _still(rest: str) -> bool:
    if not rest.startswith("until "):
        return True
    return not Path(rest.split()[1]).exists()


if __name__ == "__main__":
    from pipeline.cli import main

    main()
