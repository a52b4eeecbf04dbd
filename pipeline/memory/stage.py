"""The stages that train a memory encoder for the target, on all documents of a job."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models import ModelError, check_causal, digest_of, encoders, expects_gpu, resolve
from pipeline.models.folder import window_of
from pipeline.stages import Outcome, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.memory import EncoderSpec, EncoderTraining, FinetuneSpec, Lesson, PretrainSpec
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipeline.memory.plan import Plan
    from pipeline.models import LoadedModel, ModelRef

log = logging.getLogger(__name__)

VERSION = 5
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

ENCODER = "encoder"
"""The encoder's folder, in that of the stage."""

LAST_GOOD = "last-good"
"""The folder of what a training that diverged had learned before, to begin again with."""

SAMPLES = 10
"""Held-out spans or answers shown in the log over a training, each written for it."""

_CHARACTERS_PER_SECOND = {"cpu": 1_000, "cuda": 400_000}
"""Rough speed of learning from a text once with a 135M model."""


@dataclass(frozen=True, slots=True)
class Training(ABC):
    """Of an encoder over ``target``. What it writes of one document depends on all of them."""

    spec: EncoderTraining
    target: TargetSpec

    def identity(self) -> Any:
        """The digest of the model that encodes and reads, and the tensors that are begun with."""
        base = digest_of(self.target.model, check=check_causal)
        found = self.beginning()
        return [VERSION, base, encoders.read_manifest(found).sha256] if found else [VERSION, base]

    def beginning(self) -> Path | None:
        """The folder of the encoder that is gone on from, if any.

        Raises ``ModelNotFound``, and ``ModelError`` for one that is damaged, another model's, or of other settings.
        """
        if self.spec.begin is None:
            return None
        base, cache = self.target.model, Settings().cache
        found = encoders.find(self.spec.begin, cache)
        manifest = encoders.check(found, base, digest_of(base), cache)
        if EncoderSpec.model_validate(manifest.spec) != self.spec.encoder:
            said = ", ".join(f"{key} = {value!r}" for key, value in sorted(manifest.spec.items()))
            raise ModelError(f"begin: {self.spec.begin} has {said}: say the same in [stages.encoder]")
        return found

    def check(self) -> None:
        """``ModelError`` for lessons that are longer than what the model takes at once, and for layers that are to get
        low-rank weights and that it lacks."""
        ref = resolve(self.target.model)
        if self.spec.encoder.rank and self.spec.encoder.targets:  # by default no name can be wrong
            self._check_targets(ref)
        self.check_lessons(self.spec.kind)

    def check_lessons(self, where: str) -> None:
        """The first alone; ``where`` is what the error says first."""
        window = window_of(resolve(self.target.model).folder)
        for one in self.spec.lessons:
            places, what = self.places(one)
            if window is not None and places > window:
                raise ModelError(
                    f"{where}: a lesson of {one.tokens} tokens takes {places} places with {what}, and "
                    f"{self.target.model} reads {window} at most: shorten it"
                )

    def places(self, one: Lesson) -> tuple[int, str]:
        """Most that are read at once in this lesson, a context's tokens and what else."""
        return 1 + one.tokens + one.slots, "its slots"  # and what stands first; [AE] is in place of the last token

    def _check_targets(self, ref: ModelRef) -> None:
        try:
            from pipeline.memory.lowrank import layers_of
            from pipeline.models.loading import without_weights

            trunk = without_weights(ref).get_decoder()
        except Exception as error:  # noqa: BLE001  who submits may lack torch; what cannot be built the worker says
            log.info("encoder.targets are looked for when the job runs: %s", error)
            return
        try:
            layers_of(trunk, self.spec.encoder.targets)
        except ValueError as error:
            raise ModelError(f"{self.spec.kind}: encoder.targets: {error} in {ref.name}") from None

    def work_seconds(self, characters: int) -> float:
        """Seconds to learn from a document of this length once, roughly; how often is the lessons' to say."""
        return characters / _CHARACTERS_PER_SECOND["cuda" if expects_gpu(self.spec.device) else "cpu"]

    @abstractmethod
    def plan(self, documents: Sequence[Document], loaded: LoadedModel, alive: Callable[[], None]) -> Plan:
        """What is learned from these documents, in order; ``alive`` is called now and then, and may raise."""

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """As ``learn``; the encoder lies in ``encoder`` of ``run.folder``, if there is one."""
        from pipeline.memory.session import learn

        return learn(self, documents, run)


@dataclass(frozen=True, slots=True)
class Pretrain(Training):
    """On documents that are texts."""

    spec: PretrainSpec

    def plan(self, documents: Sequence[Document], loaded: LoadedModel, alive: Callable[[], None]) -> Plan:
        """Spans that are repeated, or gone on with."""
        from pipeline.memory.pretraining import Pretraining

        return Pretraining(self.spec, documents, loaded, alive)

    def places(self, one: Lesson) -> tuple[int, str]:
        """Or the text that is gone on with, by whoever teaches."""
        found = Training.places(self, one)  # with slots, dataclasses are made twice, and super() knows the first
        taught = 2 * one.tokens, "what goes on behind it, as distilled has it"  # but the last, and a BOS before it
        return max(found, taught) if self.spec.distilled else found


@dataclass(frozen=True, slots=True)
class Finetune(Training):
    """On documents that are contexts, questions and answers."""

    spec: FinetuneSpec

    def check(self) -> None:
        """Its rehearsal's lessons, too."""
        Training.check(self)
        if self.spec.rehearsed is not None:
            Pretrain(self.spec.rehearsed, self.target).check_lessons("finetune: rehearsal")

    def plan(self, documents: Sequence[Document], loaded: LoadedModel, alive: Callable[[], None]) -> Plan:
        """Questions that are answered from the slots of their contexts."""
        from pipeline.memory.finetuning import Finetuning

        return Finetuning(self.spec, documents, loaded, alive)
