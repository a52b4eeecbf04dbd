"""The evaluation stage: every answer against the document's reference. Runs no model and loads no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.overlap import versions
from pipeline.evaluation.scoring import NoReferenceError, Scorer
from pipeline.stages import Halt, Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.evaluate import EvaluateSpec
from schemas.job import TargetSpec

VERSION = 2
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

CHARACTERS_PER_SECOND = 200_000.0  # ROUGE's pace on one core; the other metrics are faster


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Scores ``generated`` against ``answer``; a document without a reference answer is refused."""

    spec: EvaluateSpec
    target: TargetSpec

    def identity(self) -> Any:
        """The versions of the packages that score. Raises ``MetricsMissing``."""
        return [VERSION, *versions(self.spec.measured)]

    def work_seconds(self, characters: int) -> float:
        """An answer's length is not known here; the prompt's stands for it."""
        return 2e-4 + characters / CHARACTERS_PER_SECOND

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Raises ``Stopped``, and ``Halt`` where no stage before has generated."""
        scorer = Scorer(self.spec)
        outcomes: list[Outcome] = []
        for document in documents:
            if run.stopping():
                raise Stopped
            outcomes.append(_outcome(scorer, document))
            run.progress(1, 0)
        return outcomes


def _outcome(scorer: Scorer, document: Document) -> Outcome:
    began = time.perf_counter()
    recovered = document.fields.get("recovered")
    generated = document.fields.get("generated") if recovered is None else recovered
    if not isinstance(generated, str):
        raise Halt("evaluate found no answers to score: it needs a generate stage before it")
    if document.answer is None or not document.answer.strip():
        return Refusal("no_reference", f"{_row(document)} has no reference answer: {_REMEDY}")
    try:
        columns = scorer(generated, document.answer, document.parts.question)
    except NoReferenceError as error:
        return Refusal("bad_reference", f"{_row(document)}: {error}; mend it, or evaluate as another task")
    return Result(columns, seconds=time.perf_counter() - began)


_REMEDY = "name its column under [input.columns] answer, or leave evaluate out of the job"


def _row(document: Document) -> str:
    return f"{document.source or 'the row'} (document {document.id})"
