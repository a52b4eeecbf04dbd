"""The pretrain stage: all documents of a job, which are texts -> a memory encoder for the target, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.memory.spans import slots_of
from pipeline.models import ModelError, check_causal, digest_of, expects_gpu, resolve
from pipeline.models.folder import window_of
from pipeline.stages import Outcome, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.memory import PretrainSpec

VERSION = 1
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

ENCODER = "encoder"
"""The encoder's folder, in that of the stage."""

_CHARACTERS_PER_SECOND = {"cpu": 1_000, "cuda": 400_000}
"""Rough speed of learning from a text once with a 135M model."""


@dataclass(frozen=True, slots=True)
class Pretrain:
    """Trains an encoder over ``target``. What it writes of one document depends on all of them."""

    spec: PretrainSpec
    target: TargetSpec

    def identity(self) -> Any:
        """The digest of the model that encodes and reads."""
        return [VERSION, digest_of(self.target.model, check=check_causal)]

    def check(self) -> None:
        """``ModelError`` for lessons that are longer than what the model takes at once."""
        ref = resolve(self.target.model)
        window = window_of(ref.folder)
        for one in self.spec.lessons:
            places = one.tokens + slots_of(one.tokens, one.ratio) + 1  # [AE], or a memory token less one
            if window is not None and places > window:
                raise ModelError(
                    f"pretrain: a lesson of {one.tokens} tokens takes {places} places with its slots, and "
                    f"{self.target.model} reads {window} at most: shorten it"
                )

    def work_seconds(self, characters: int) -> float:
        """Seconds to learn from a document of this length once, roughly; how often is the lessons' to say."""
        return characters / _CHARACTERS_PER_SECOND["cuda" if expects_gpu(self.spec.device) else "cpu"]

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """As ``learn``; the encoder lies in ``encoder`` of ``run.folder``, if there is one."""
        from pipeline.memory.session import learn

        return learn(self, documents, run)
