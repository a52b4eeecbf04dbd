"""What commands that train share: jobs one after the other, whose answers are learned from."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.shared import DEAD, out, print_json

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from schemas.job import JobSpec
    from schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class Teaching:
    """One run of such a command. ``makes`` is what it makes, as ``--json`` calls it."""

    engine: Engine
    settings: Settings
    workers: int
    json: bool
    makes: str

    def run_job(self, job: JobSpec, go_on: tuple[int, ...] = ()) -> tuple[int, Any]:
        """Run it to its end: its exit code, and its summary where programs read along. Ends in ``typer.Exit`` if it
        failed: only 0, dead documents and ``go_on`` let the command go on."""
        from pipeline.cli.running import run_job

        kept = io.StringIO()
        code = 0
        with contextlib.redirect_stdout(kept) if self.json else contextlib.nullcontext():
            try:
                run_job(self.engine, self.settings, self.workers, job, self.json)
            except typer.Exit as ended:
                code = ended.exit_code
        summary = json.loads(kept.getvalue()) if kept.getvalue().strip() else None
        if code in (0, DEAD, *go_on):
            return code, summary
        if self.json:
            print_json({"jobs": [summary], self.makes: None})
        raise typer.Exit(code)

    def gather(self, jobs: list[JobSpec], output: str, name: str, end: str = "") -> tuple[str, int]:
        """The file of all answers of these jobs, and how many they are; says how many there are not."""
        from pipeline.alignment.answers import gather
        from pipeline.producer import identify

        gathered = gather(self.engine, [identify(job).job_id for job in jobs], output, name, end)
        if gathered.unanswered:
            self.say(f"{gathered.unanswered} prompts have no answer and are left out")
        return gathered.path, gathered.pairs

    def say(self, text: str) -> None:
        """A line for whoever reads along; programs do not."""
        if not self.json:
            out.print(text, markup=False, soft_wrap=True)
