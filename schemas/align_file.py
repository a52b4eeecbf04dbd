"""The file of `contextmill align`: whose answers to which prompts, and what is trained on them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.align import AlignSpec
from schemas.base import Strict
from schemas.job import Columns, InputSpec, JobSpec, OutputSpec, TargetSpec
from schemas.stage import GenerateSpec

PAIRS = Columns(id="id", text="text", answer="answer")
"""The columns of the file that the training job reads."""


class AnsweringTarget(TargetSpec):
    """``[[targets]]``: a target model, and in ``answers`` what a ``generate`` stage may be told."""

    answers: GenerateSpec = GenerateSpec(kind="generate")

    @field_validator("answers", mode="before")
    @classmethod
    def _generated(cls, value: Any) -> Any:
        return {"kind": "generate", **value} if isinstance(value, dict) else value


class AlignFile(Strict):
    """One scorer for one or several targets. ``name`` is the adapter's: the scorer is then ``MODEL+NAME``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,55}$")  # leaves room for "-answers"
    input: InputSpec
    output: OutputSpec = OutputSpec()
    align: AlignSpec = AlignSpec(kind="align")
    targets: tuple[AnsweringTarget, ...] = Field(min_length=1)
    priority: Literal["high", "bulk"] = "bulk"

    @field_validator("align", mode="before")
    @classmethod
    def _aligned(cls, value: Any) -> Any:
        return {"kind": "align", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _targets_differ(self) -> AlignFile:
        asked = [(target.model, target.answers.output_settings()) for target in self.targets]
        if any(one in asked[:number] for number, one in enumerate(asked)):
            raise ValueError("two targets are the same: leave one out, or give it another seed and a temperature")
        return self

    def answer_jobs(self) -> tuple[JobSpec, ...]:
        """One ordinary generate job per target, over all prompts."""
        return tuple(
            JobSpec(
                name=f"{self.name}-answers",
                input=self.input,
                output=self.output,
                target=TargetSpec(**target.model_dump(exclude={"answers"})),
                stages=(target.answers,),
                priority=self.priority,
            )
            for target in self.targets
        )

    def training_job(self, pairs: str) -> JobSpec:
        """The align job over the file ``pairs``, which holds what the targets answered."""
        return JobSpec(
            name=self.name,
            input=InputSpec(path=(pairs,), format="parquet", columns=PAIRS, max_document_bytes=2**31 - 1),
            output=self.output,
            target=TargetSpec(model=self.align.model),
            stages=(self.align,),
            priority=self.priority,
        )
