"""A look over a corpus before anything is spent: how many documents, how many characters, what would be refused."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.producer import SAMPLE
from pipeline.storage.readers import BadRow, read_corpus
from schemas.job import InputSpec


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
            sample.append(text)
    return Survey(documents, characters, rejected, first, tuple(sample))
