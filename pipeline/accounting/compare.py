"""The estimate made before a job ran, beside what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.accounting.figures import Comparison, StageFigures


def compare(estimate: dict[str, Any] | None, documents: int, stages: Sequence[StageFigures]) -> tuple[Comparison, ...]:
    """Documents, then tokens, seconds and money per stage. Empty where no estimate was stored with the job."""
    if estimate is None:
        return ()
    rows = [Comparison("documents", "documents", estimate.get("documents"), documents)]
    guesses = {guess["index"]: guess for guess in estimate.get("stages", ())}
    for stage in stages:
        rows += _stage(guesses.get(stage.index, {}), stage)
    return tuple(rows)


def _stage(guess: dict[str, Any], stage: StageFigures) -> list[Comparison]:
    ran = stage.documents > 0
    rows = [
        Comparison(f"{stage.kind}: tokens in", "tokens", guess.get("tokens_in"), stage.tokens_in if ran else None),
        Comparison(f"{stage.kind}: tokens out", "tokens", guess.get("tokens_out"), stage.tokens_out if ran else None),
        Comparison(f"{stage.kind}: worker time", "seconds", guess.get("seconds"), stage.seconds if ran else None),
    ]
    if guess.get("expected_microusd") is not None or stage.cost_microusd is not None:
        known = stage.cost_microusd if stage.unpriced == 0 else None
        rows.append(Comparison(f"{stage.kind}: cost", "microusd", guess.get("expected_microusd"), known))
    return rows
