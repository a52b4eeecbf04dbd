"""What `contextmill distill` is given: a job file, and how a drafter is trained on its target's answers."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from schemas.align_file import PAIRS
from schemas.job import InputSpec, JobSpec, TargetSpec
from schemas.stage import DistillSpec, GenerateSpec


class DistillFile(JobSpec):
    """A job, and beside its own keys ``distill``: in the job file itself nobody would read it."""

    distill: DistillSpec

    @field_validator("distill", mode="before")
    @classmethod
    def _distilled(cls, value: Any) -> Any:
        if isinstance(value, dict) and "answers" in value:
            raise ValueError("answers are those of the job's generate stage: leave distill.answers out")
        return {"kind": "distill", **value} if isinstance(value, dict) else value

    @property
    def job(self) -> JobSpec:
        """The job whose answers are learned, as `contextmill run` would have it."""
        return JobSpec.model_validate(self.model_dump(exclude={"distill"}))

    def training_job(self, name: str, answers: GenerateSpec, pairs: str) -> JobSpec:
        """The distill job over the file ``pairs``, which holds what the target answered in the stage ``answers``."""
        return JobSpec(
            name=name,
            input=InputSpec(path=(pairs,), format="parquet", columns=PAIRS, max_document_bytes=2**31 - 1),
            output=self.output,
            target=TargetSpec(model=self.target.model),
            stages=(self.spec_of(answers),),
            priority=self.priority,
        )

    def spec_of(self, answers: GenerateSpec) -> DistillSpec:
        """How it is trained on what the stage ``answers`` wrote."""
        return self.distill.model_copy(update={"answers": answers})
