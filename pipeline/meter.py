"""How far work on a whole corpus is, told as documents."""

from __future__ import annotations

from pipeline.stages import Run


class Meter:
    """Tells ``run`` how far a training is, as documents: the share of its work that is done, times their number."""

    def __init__(self, run: Run, documents: int, work: int) -> None:
        self._run, self._documents, self._work = run, documents, work
        self._done = self._told = 0

    def add(self, tokens: int, weight: int) -> None:
        """So many tokens went through a pass that counts ``weight`` times."""
        self._done += tokens * weight
        self._tell(min(self._documents - 1, self._documents * self._done // self._work), tokens)

    def skip(self, work: int) -> None:
        """An earlier attempt did this much."""
        self._done += work
        self.add(0, 0)

    def finish(self) -> None:
        """All is done."""
        self._tell(self._documents, 0)

    def _tell(self, documents: int, tokens: int) -> None:
        self._run.progress(documents - self._told, tokens)
        self._told = documents
