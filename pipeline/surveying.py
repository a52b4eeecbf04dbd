"""A look over a corpus before anything is spent: how many documents, how many characters, what would be refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.accounting.estimate import Estimate, estimate
from pipeline.accounting.speeds import measured
from pipeline.opening import open_database
from pipeline.producer import SAMPLE, SAMPLE_CHARACTERS
from pipeline.stages import stage_hashes
from pipeline.storage.readers import BadRow, read_corpus
from pipeline.storage.sql import DatabaseError
from schemas.job import InputSpec, JobSpec
from schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class Survey:
    """What ``--dry-run`` knows of a corpus. Repeated ids are counted each time: finding them needs the database."""

    documents: int
    characters: int
    rejected: int
    first_rejection: str | None
    sample: tuple[str, ...]


def survey(spec: InputSpec) -> Survey:
    """Read the corpus once, as a stream. Raises ``InputError``."""
    documents = characters = rejected = 0
    first: str | None = None
    sample: list[str] = []
    for row in read_corpus(spec):
        if isinstance(row, BadRow):
            rejected += 1
            first = first or f"{row.source}: {row.reason}"
            continue
        documents += 1
        text = row.parts.render()
        characters += len(text)
        if len(sample) < SAMPLE:
            sample.append(text[:SAMPLE_CHARACTERS])
    return Survey(documents, characters, rejected, first, tuple(sample))


def estimate_job(spec: JobSpec, settings: Settings) -> tuple[Estimate, Survey]:
    """What ``--dry-run`` says. Raises ``InputError``, ``ModelError``."""
    seen = survey(spec.input)
    known = _known_speeds(spec, settings)
    made = estimate(spec, seen.documents, seen.characters, sample=seen.sample, measured=known, settings=settings)
    return made, seen


def _known_speeds(spec: JobSpec, settings: Settings) -> dict[int, Any] | None:
    """How fast earlier jobs did the same stages, where there is a database to ask."""
    try:
        engine, _ = open_database(settings, spec.output.path)
    except DatabaseError:
        return None
    return dict(measured(engine, stage_hashes(spec)))
