"""The peer's process: cases in, answers out, one after the other."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import Environment
from schemas.document import PromptParts


@dataclass(frozen=True, slots=True)
class Peer:
    """llmlingua with one model folder of ours (or a folder it reads as it is) on one device."""

    environment: Environment
    model: Path
    device: str
    dtype: str
    threads: int | None = None
    llmlingua2: bool = False

    def answers(
        self, cases: Sequence[dict[str, Any]], progress: Callable[[str], None] = print
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Facts about the process, and an answer to every case that does not warm up, in order.

        ``RuntimeError`` with its last words if it ends early.
        """
        wanted = sum("warm_up" not in one for one in cases)
        with tempfile.TemporaryDirectory() as temporary:
            file, errors = Path(temporary) / "cases.jsonl", Path(temporary) / "errors"
            file.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
            rows = self._run([*self._options(), "--input", str(file)], errors, progress)
            if len(rows) != wanted + 1:
                said = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"the peer ended after {max(0, len(rows) - 1)} of {wanted} cases:\n{said}")
        return rows[0]["facts"], rows[1:]

    def _options(self) -> list[str]:
        options = ["--model", str(self.model), "--device", self.device, "--dtype", self.dtype]
        options += ["--threads", str(self.threads)] if self.threads else []
        return options + (["--llmlingua2"] if self.llmlingua2 else [])

    def _run(self, options: list[str], errors: Path, progress: Callable[[str], None]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        command, variables = self.environment.command(*options), self.environment.variables()
        with (
            errors.open("w") as log,
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                rows.append(json.loads(line))
                if len(rows) % 8 == 0:
                    progress(f"peer: {len(rows) - 1} cases answered")
        return rows


def case(number: int, prompt: PromptParts, function: str = "compress_prompt", **options: Any) -> dict[str, Any]:
    """A prompt as a case of the peer; ``options`` are the library's own."""
    return {
        "id": number,
        "function": function,
        "context": list(prompt.contexts),
        "instruction": prompt.instruction,
        "question": prompt.question,
        "kwargs": options,
    }


def warming(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same cases, to be run and not answered."""
    return [{**one, "warm_up": True} for one in cases]
