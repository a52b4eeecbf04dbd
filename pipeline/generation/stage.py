"""The generation stage: the job's target model answers every prompt. Loads torch or an SDK only when it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stages import Halt, Outcome, Run
from schemas.document import Document
from schemas.job import JobSpec, TargetSpec
from schemas.settings import Settings
from schemas.stage import GenerateSpec

CHARACTERS_PER_TOKEN = 4
CPU_TOKENS = (800.0, 100.0)  # read and written per second, 135M parameters, two cores, a batch at a time
GPU_TOKENS = (100_000.0, 1_000.0)
CALL_TOKENS = 50.0  # written per second by one call to a hosted model


@dataclass(frozen=True, slots=True)
class Generate:
    """Answers from ``target.model``: a local model, or with ``backend = "openai"`` one behind an endpoint."""

    spec: GenerateSpec
    target: TargetSpec

    @classmethod
    def from_spec(cls, job: JobSpec, index: int) -> Generate:
        """The stage at ``index`` of ``job``, which must be a generate stage."""
        spec = job.stages[index]
        if not isinstance(spec, GenerateSpec):
            raise ValueError(f"stage {index} of job {job.name!r} is {spec.kind}, not generate")
        return cls(spec, job.target)

    def identity(self) -> Any:
        """Local: the digest of weights and tokenizer. Hosted: all that is known is where the model is and its name."""
        if self.spec.backend == "openai":
            return ["openai", self.spec.base_url or "default", self.target.model]
        from pipeline.models import digest_of

        return [digest_of(self.target.model)]

    def work_seconds(self, characters: int) -> float:
        """Reading the prompt and writing the longest answer allowed; the rates are those of the small default model."""
        if self.spec.backend == "openai":
            return self.spec.max_new_tokens / CALL_TOKENS / self.spec.concurrency
        read, write = GPU_TOKENS if _on_gpu(self.spec.device) else CPU_TOKENS
        return characters / CHARACTERS_PER_TOKEN / read + self.spec.max_new_tokens / write

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Raises ``Stopped``, and ``Halt`` for what a person must mend."""
        if self.spec.backend == "openai":
            from pipeline.generation.hosted import HostedGenerator

            return HostedGenerator(self.spec, self.target, Settings().api_key).run(documents, run)
        from pipeline.generation.local import answer
        from pipeline.models import ModelError

        try:
            loaded = run.models.causal_lm(self.target.model, self.spec.dtype, self.spec.device)
        except ModelError as error:  # no document's fault: taking the shard apart would only load in vain again
            raise Halt(str(error)) from error
        return answer(documents, self.target.model, loaded, self.spec, run)


def _on_gpu(device: str) -> bool:
    """Whether the work will be done on a GPU, guessed without torch: this runs where jobs are cut."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/dev/nvidiactl").exists()
    return device.startswith("cuda") or (device == "auto" and visible)
