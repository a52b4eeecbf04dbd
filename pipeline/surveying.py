"""A look over a corpus before anything is spent: what is there, what it would take, and what that rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sqlalchemy import Engine, func, select

from pipeline.accounting.estimate import Estimate, estimate
from pipeline.accounting.speeds import measured
from pipeline.accounting.stage_estimate import CALL_RATE, CPU_RATES, GPU_RATES, REFERENCE_PARAMETERS, StageEstimate
from pipeline.accounting.wording import counted
from pipeline.opening import open_database
from pipeline.producer import SAMPLE, SAMPLE_CHARACTERS, copies
from pipeline.stages import check, stage_hashes
from pipeline.storage.readers import BadRow, read_corpus
from pipeline.storage.sql import DatabaseError, reading
from schemas.document import Document
from schemas.job import InputSpec, JobSpec
from schemas.settings import Settings
from schemas.tables import Usage


@dataclass(frozen=True, slots=True)
class Survey:
    """What ``--dry-run`` knows of a corpus. Repeated ids are counted each time: finding them needs the database."""

    documents: int
    characters: int
    rejected: int
    first_rejection: str | None
    sample: tuple[str, ...]


Forecast = tuple[Estimate, Survey, dict[str, str]]
"""An estimate, the corpus it is of, and per kind of stage what its time rests on."""


def survey(spec: InputSpec) -> Survey:
    """Read the corpus once, as a stream. Raises ``InputError``."""
    return surveyed(row if isinstance(row, BadRow) else row.parts.render() for row in read_corpus(spec))


def surveyed(rows: Iterable[str | BadRow]) -> Survey:
    """Of texts, and of rows that are none."""
    documents = characters = rejected = 0
    first: str | None = None
    sample: list[str] = []
    for row in rows:
        if isinstance(row, BadRow):
            rejected += 1
            first = first or f"{row.source}: {row.reason}"
            continue
        documents += 1
        characters += len(row)
        if len(sample) < SAMPLE:
            sample.append(row[:SAMPLE_CHARACTERS])
    return Survey(documents, characters, rejected, first, tuple(sample))


def first_documents(spec: JobSpec, most: int) -> tuple[list[Document], list[BadRow]]:
    """The first ``most`` documents of the corpus as submission makes them, each at the first of the job's rates, and
    the bad rows before the last of them. A repeated id is passed over. Raises ``InputError``."""
    found: dict[str, Document] = {}
    bad: list[BadRow] = []
    for row in read_corpus(spec.input):
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        one = next(copies(row, spec.rates[:1]))
        found.setdefault(one.id, replace(one, seq=len(found)))
        if len(found) == most:
            break
    return list(found.values()), bad


def estimate_job(spec: JobSpec, settings: Settings, seen: Survey | None = None) -> Forecast:
    """What ``--dry-run`` says. ``seen`` is what the job is to read where its input is not there yet.

    Raises ``InputError``, and ``ModelError`` for what submission would refuse.
    """
    check(spec)
    seen = seen or survey(spec.input)
    hashes = stage_hashes(spec)
    engine = _database(spec, settings)
    known = measured(engine, hashes) if engine else {}
    copies = max(1, len(spec.rates))  # every document goes through once at each rate
    counts = seen.documents * copies, seen.characters * copies
    made = estimate(spec, *counts, sample=seen.sample, measured=known, settings=settings)
    bases = {
        stage.kind: _measured_in(engine, hashes[stage.index]) if engine and stage.index in known else _assumed(stage)
        for stage in made.stages
        if stage.seconds != 0  # a stage without work has no speed
    }
    return made, seen, bases


def _database(spec: JobSpec, settings: Settings) -> Engine | None:
    """The database that knows how fast earlier jobs did the same stages, where there is one."""
    try:
        return open_database(settings, spec.output.path)[0]
    except DatabaseError:
        return None


def _measured_in(engine: Engine, stage_hash: str) -> str:
    query = select(func.count(Usage.job_id.distinct())).where(
        Usage.stage_hash == stage_hash, Usage.reused_from.is_(None)
    )
    with reading(engine) as connection:
        runs = connection.execute(query).scalar_one()
    return f"time measured in {counted(runs, 'run')} with this database"


def _assumed(stage: StageEstimate) -> str:
    """Which machine the built-in rates are of. ``pipeline.accounting.stage_estimate`` has them."""
    if stage.seconds is None:
        return "time unknown, see the note"
    model = f"with a model of {REFERENCE_PARAMETERS / 1e6:.0f}M parameters"
    machine = {
        "hosted": f"an endpoint that writes {CALL_RATE:,.0f} tokens/s in each call",
        "cuda": f"a large GPU that reads {GPU_RATES[0]:,.0f} and writes {GPU_RATES[1]:,.0f} tokens/s {model}",
        "cpu": f"cores that read {CPU_RATES[0]:,.0f} and write {CPU_RATES[1]:,.0f} tokens/s each {model}",
    }[stage.device]
    return f"time assumed, not measured yet: for {machine}; the first run measures it"
