"""The command `contextmill` as a user has it: a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COPY = 'name = "t"\n[input]\npath = "in.jsonl"\n[target]\nmodel = {model}\n[[stages]]\nkind = "copy"\n'


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its whole standard output as one JSON value."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class User:
    """Someone at a shell in ``folder``."""

    folder: Path

    @classmethod
    def with_a_job(cls, folder: Path, model: Path) -> User:
        """Someone with a job file and three documents."""
        user = cls(folder)
        user.write("job.toml", COPY.format(model=json.dumps(str(model))))
        rows = [{"id": name, "text": f"the text of {name}"} for name in "abc"]
        user.write("in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return user

    def environment(self, **more: str) -> dict[str, str]:
        """What the command is started with."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "CONTEXTMILL_REAP_SECONDS": "1", **more}

    def command(self, *words: str) -> list[str]:
        """``contextmill`` of this very installation."""
        return [str(Path(sys.executable).with_name("contextmill")), *words]

    def says(
        self, *words: str, seconds: float = 400, cwd: Path | None = None, prefix: Sequence[str] = (), **environment: str
    ) -> Said:
        """Run the command to its end; one that hangs fails the test. A traceback is never what a user is told."""
        done = subprocess.run(
            [*prefix, *self.command(*words)], cwd=cwd or self.folder, env=self.environment(**environment),
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Said(done.returncode, done.stdout, done.stderr)

    def write(self, name: str, text: str | bytes) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
