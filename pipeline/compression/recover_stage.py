"""The recover stage: answers to compressed prompts, in the original's words. Runs no model and loads no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compression.recovering import recovered, replaced
from pipeline.stages import Halt, Outcome, Result, Run, Stopped
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.recover import RecoverSpec

VERSION = 2
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

CHARACTERS_PER_SECOND = 2_000_000.0  # of the prompt, on one core


@dataclass(frozen=True, slots=True)
class Recover:
    """Writes ``recovered`` from ``generated`` and ``kept``; null where a method does not say what it kept."""

    spec: RecoverSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Nothing but its version."""
        return [VERSION]

    def work_seconds(self, characters: int) -> float:
        """The compressed prompt's length is all that is known here."""
        return 1e-3 + characters / CHARACTERS_PER_SECOND

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One result per document, in order. Raises ``Stopped``, and ``Halt`` where no stage before has generated."""
        outcomes: list[Outcome] = []
        for document in documents:
            if run.stopping():
                raise Stopped
            outcomes.append(self._result(document))
            run.progress(1, 0)
        return outcomes

    def _result(self, document: Document) -> Result:
        began = time.perf_counter()
        answer, kept = document.fields.get("generated"), document.fields.get("kept")
        if not isinstance(answer, str):
            raise Halt("recover found no answers: it needs a generate stage before it")
        if kept is None:
            return Result({"recovered": None, "recovered_from": None}, seconds=time.perf_counter() - began)
        original = document.parts.render()
        found = recovered(original, kept, answer, self.spec.reach)
        spans = [place for one in found for place in (*one.answer, *one.original)]
        columns = {"recovered": replaced(original, answer, found), "recovered_from": spans}
        return Result(columns, seconds=time.perf_counter() - began)
