"""The encode stage: the contexts of prompts -> memory slots, which the target reads in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models import ModelError, digest_of, encoders, expects_gpu, resolve
from pipeline.models.encoders import EncoderManifest
from pipeline.models.folder import window_of
from pipeline.stages import Outcome, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.memory import CONTINUATION, EncodeSpec, slots_of
from schemas.settings import Settings

VERSION = 3
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

_CHARACTERS_PER_SECOND = {"cpu": 3_000, "cuda": 600_000}
"""Rough speeds for cutting shards: of a 135M model on two cores in float32 and on one large GPU."""

_STEP_PASSES = {"cpu": 3, "cuda": 7}
"""Passes that a step takes which fits slots; of a GPU more, as others read there without padding."""

_CONTINUED = 0.5
"""What a continuation takes of what a span does: of a short one more, of a long one less."""


def passes_of(spec: EncodeSpec, device: str) -> float:
    """How many times encoding takes what reading once does on such a device, with all steps that fit slots."""
    return 1 + spec.refine * _STEP_PASSES[device] * (1 + spec.continuations * _CONTINUED)


@dataclass(frozen=True, slots=True)
class Cut:
    """How contexts are cut: spans of ``span`` tokens at most, a slot for ``ratio`` tokens, or ``fixed`` slots each."""

    span: int
    ratio: float
    fixed: int | None = None

    def slots(self, tokens: int) -> int:
        """Of a span of so many tokens: never more than these."""
        if self.fixed is not None:
            return min(tokens, self.fixed)
        return slots_of(tokens, self.ratio)


@dataclass(frozen=True, slots=True)
class Encode:
    """Slots by ``spec.encoder`` for ``target``, over which that was trained."""

    spec: EncodeSpec
    target: TargetSpec

    def identity(self) -> Any:
        """The encoder's revision, in which its base's digest is, and how contexts are cut."""
        _, manifest = self.found()
        cut = self.cut(manifest)
        return [VERSION, manifest.revision, cut.span, cut.ratio if cut.fixed is None else f"{cut.fixed} slots"]

    def found(self) -> tuple[Path, EncoderManifest]:
        """The encoder's folder, looked at: whole, and for this very target.

        Raises ``ModelNotFound``, and ``ModelError`` for one that is damaged or another model's.
        """
        cache, base = Settings().cache, self.target.model
        folder = encoders.find(self.spec.encoder, cache)
        return folder, encoders.check(folder, base, digest_of(base), cache)

    def cut(self, manifest: EncoderManifest) -> Cut:
        """As the stage says, or else as the encoder's last lesson was."""
        figures = manifest.figures
        return Cut(self.spec.span or figures.tokens, self.spec.ratio or figures.ratio, self.spec.slots)

    def check(self) -> None:
        """``ModelError`` for spans that have more slots than the encoder, or more places than the target."""
        _, manifest = self.found()
        cut, most = self.cut(manifest), manifest.spec["slots"]
        slots, window = cut.slots(cut.span), window_of(resolve(self.target.model).folder)
        if slots > most:
            raise ModelError(
                f"encode: a span of {cut.span} tokens takes {slots} slots, and encoder {self.spec.encoder} makes "
                f"{most} at most: {'lower slots' if cut.fixed else 'lower span, or raise ratio'}"
            )
        if window is not None and (places := 1 + cut.span + slots) > window:
            raise ModelError(
                f"encode: a span of {cut.span} tokens takes {places} places with its slots, and "
                f"{self.target.model} reads {window} at most: lower span"
            )
        if window is not None and self.spec.continuations and (places := cut.span + CONTINUATION) > window:
            raise ModelError(
                f"encode: a span of {cut.span} tokens takes {places} places with a continuation, and "
                f"{self.target.model} reads {window} at most: lower span, or leave continuations out"
            )

    def work_seconds(self, characters: int) -> float:
        """Seconds that a document of this length takes, roughly: rates are those of the small default model."""
        device = "cuda" if expects_gpu(self.spec.device) else "cpu"
        return passes_of(self.spec, device) * characters / _CHARACTERS_PER_SECOND[device]

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Raises ``Stopped`` when the run is stopping."""
        from pipeline.memory.encoding import encode

        return encode(self, documents, run)
