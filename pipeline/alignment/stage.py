"""The align stage: all documents of a job, each a prompt with its answer -> an adapter, and how much it helped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.models import check_causal, digest_of, expects_gpu
from pipeline.stages import Halt, Outcome, Run
from schemas.align import AlignSpec, TrainingSpec
from schemas.document import Document
from schemas.job import TargetSpec

if TYPE_CHECKING:
    from pipeline.alignment.pairs import Pair
    from pipeline.alignment.session import Extra, Trained
    from pipeline.models import LoadedModel

VERSION = 2
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

_CHARACTERS_PER_SECOND = {"cpu": 1_000, "cuda": 400_000}
"""Rough speed of one pass forward and backward through a 135M model (two cores in float32; one large GPU)."""


@dataclass(frozen=True, slots=True)
class Align:
    """Trains ``spec.model`` on the documents' answers. What it writes of one document depends on all of them."""

    spec: AlignSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Digests of the model that is trained and of the teacher."""
        teacher = self.spec.teacher
        of = partial(digest_of, check=check_causal)
        return [VERSION, of(self.spec.model), of(teacher) if teacher else None]

    def work_seconds(self, characters: int) -> float:
        """Seconds that a document of this length takes over all epochs, roughly."""
        return training_seconds(self.spec, characters)

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """As ``learn``; the adapter lies in ``adapter`` of ``run.folder``, if there is one."""
        from pipeline.alignment.session import learn

        return learn(self, documents, run)

    def learner(self, run: Run) -> LoadedModel:
        """The scorer, which gets an adapter. Raises ``Halt`` for one that has one."""
        loaded = run.models.own_copy(self.spec.model, "float32", self.spec.device)
        if loaded.ref.adapter is not None:
            raise Halt(f"align: {self.spec.model} has an adapter already, and a model takes one: align its base anew")
        return loaded

    def teacher(self, run: Run) -> LoadedModel | None:
        """None where the answers alone are learned from."""
        spec = self.spec
        return run.models.causal_lm(spec.teacher, spec.dtype, spec.device) if spec.teacher else None

    def pairs(self, documents: Sequence[Document], loaded: LoadedModel, each: Callable[[], None]) -> Iterator[Pair]:
        """As a scorer reads them: plain text."""
        from pipeline.alignment.pairs import tokenise

        return tokenise(documents, loaded, min(self.spec.max_tokens, loaded.window), each)

    def tokens_afterwards(self, held: Sequence[Pair]) -> int:
        """None."""
        return 0

    def publish(self, trained: Trained, run: Run) -> Extra:
        """The adapter, and no more columns."""
        from pipeline.alignment.adapter import write_adapter

        if run.folder is not None:
            folder, digest = f"{run.folder}/adapter", trained.loaded.ref.digest
            write_adapter(trained.trainer.adapted, self.spec.model, digest, *trained.means, folder)
        return defaultdict(dict)


def training_seconds(spec: TrainingSpec, characters: int) -> float:
    """Seconds that a document of this length takes over all epochs, roughly."""
    speed = _CHARACTERS_PER_SECOND["cuda" if expects_gpu(spec.device) else "cpu"]
    return characters * spec.epochs / speed
