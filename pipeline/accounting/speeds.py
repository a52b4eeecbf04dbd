"""How fast a stage ran before: what an estimate rests on, where this database has seen the stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from pipeline.storage.sql import reading
from schemas.tables import Usage


@dataclass(frozen=True, slots=True)
class Measured:
    """A stage with the same settings and weights, over the documents it was run on before."""

    documents: int
    tokens_in: int
    tokens_out: int
    seconds: float


def measured(engine: Engine, stage_hashes: Sequence[str]) -> dict[int, Measured]:
    """Stage index -> what earlier jobs measured for it. Stages that never ran here are left out."""
    totals = (func.count(), func.sum(Usage.tokens_in), func.sum(Usage.tokens_out), func.sum(Usage.seconds))
    found: dict[int, Measured] = {}
    with reading(engine) as connection:
        for index, stage_hash in enumerate(stage_hashes):
            worked = Usage.reused_from.is_(None), Usage.seconds > 0  # what was known already took none
            query = select(*totals).where(Usage.stage_hash == stage_hash, *worked)
            documents, tokens_in, tokens_out, seconds = connection.execute(query).one()
            if documents and tokens_in:
                found[index] = Measured(documents, int(tokens_in), int(tokens_out), float(seconds))
    return found
