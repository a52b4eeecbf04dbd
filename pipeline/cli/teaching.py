"""What commands share that run jobs one after the other, and go on with what these wrote."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import typer

from pipeline.accounting.wording import counted
from pipeline.cli.shared import DEAD, FAILURE, out, print_json

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.cli.fleet import Fleet
    from pipeline.memory.prompting import Written
    from schemas.job import JobSpec


class Ended(NamedTuple):
    """A job that was run to its end: its exit code, and its summary where programs read along."""

    job_id: str
    code: int
    summary: Any


@dataclass(frozen=True, slots=True)
class Teaching:
    """One run of such a command. ``makes`` is what it makes, as ``--json`` calls it."""

    engine: Engine
    fleet: Fleet
    json: bool
    makes: str

    def run_job(self, job: JobSpec, go_on: tuple[int, ...] = ()) -> tuple[int, Any]:
        """Run it to its end: its exit code, and its summary where programs read along. Ends in ``typer.Exit`` if it
        failed: only 0, dead documents and ``go_on`` let the command go on."""
        from pipeline.cli.ending import finish
        from pipeline.cli.running import run_job

        kept = io.StringIO()
        with contextlib.redirect_stdout(kept) if self.json else contextlib.nullcontext():
            code = finish(self.engine, run_job(self.engine, self.fleet, job, self.json), self.json)
        summary = json.loads(kept.getvalue()) if kept.getvalue().strip() else None
        if code not in (0, DEAD, *go_on):
            self._leave(code, summary)
        return code, summary

    def _leave(self, code: int, summary: Any) -> NoReturn:
        """Nothing is made; programs are told which job it was."""
        if self.json:
            print_json({"jobs": [summary], self.makes: None})
        raise typer.Exit(code)

    def run_rows(
        self, job: JobSpec, what: str, rows: Sequence[dict[str, Any]], columns: Mapping[str, str],
        may_be_none: bool = False,
    ) -> Ended:  # fmt: skip
        """``job`` over these rows, under its name with ``what`` behind it; they are written beside its output, once.
        ``may_be_none``: the command goes on, too, where every row was rejected."""
        from pipeline.memory.prompting import lines
        from pipeline.producer import identify
        from pipeline.storage.filesystem import resolve_path
        from pipeline.storage.jobs import find_job
        from pipeline.storage.parts import write_whole
        from schemas.job import Columns, InputSpec, JobSpec

        data, name = lines(rows), f"{job.name[: 63 - len(what)]}-{what}"
        fs, root = resolve_path(job.output.path)
        folder = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        if not fs.get_file_info(f"{root}/{folder}/{what}.jsonl").is_file:
            write_whole(fs, f"{root}/{folder}/{what}.jsonl", data)
        path = f"{job.output.path.rstrip('/')}/{folder}/{what}.jsonl"
        given = InputSpec(path=(path,), columns=Columns(id="id", **columns), max_document_bytes=2**31 - 1)
        made = JobSpec.model_validate({**job.model_dump(), "name": name, "input": given.model_dump()})
        job_id = identify(made).job_id
        code, summary = self.run_job(made, (FAILURE,) if may_be_none else ())
        if code == FAILURE and find_job(self.engine, job_id).state != "done":
            self._leave(code, summary)
        return Ended(job_id, code, summary)

    def written(self, job_id: str) -> dict[str, Written]:
        """What a job that is done wrote, by its documents' ids."""
        import pyarrow.dataset as pads

        from pipeline.memory.prompting import Written
        from pipeline.storage.filesystem import resolve_path
        from pipeline.storage.jobs import find_job

        fs, root = resolve_path(find_job(self.engine, job_id).output)
        wanted = ["doc_id", "generated", "finish_reason"]
        rows = pads.dataset(f"{root}/data", filesystem=fs, format="parquet").to_table(wanted).to_pylist()
        return {row["doc_id"]: Written(row["generated"], row["finish_reason"] == "stop") for row in rows}

    def gather(self, jobs: list[JobSpec], output: str, name: str, end: str = "") -> tuple[str, int]:
        """The file of all answers of these jobs, and how many they are; says how many there are not."""
        from pipeline.alignment.answers import gather
        from pipeline.producer import identify

        gathered = gather(self.engine, [identify(job).job_id for job in jobs], output, name, end)
        if gathered.unanswered:
            self.say(f"{counted(gathered.unanswered, 'prompt')} without an answer left out")
        return gathered.path, gathered.pairs

    def say(self, text: str) -> None:
        """A line for whoever reads along; programs do not."""
        if not self.json:
            out.print(text, markup=False, soft_wrap=True)
