"""The spec of the stage that scores answers: which task they are answers to, and by which metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import StageBase

Task = Literal["gsm8k", "bbh", "qa", "summary"]
Metric = Literal["exact_match", "token_f1", "contains_answer", "bleu4", "rouge1", "rouge2", "rougeL"]

METRICS_OF: dict[str, tuple[Metric, ...]] = {
    "gsm8k": ("exact_match",),
    "bbh": ("exact_match",),
    "qa": ("exact_match", "token_f1", "contains_answer"),
    "summary": ("rouge1", "rouge2", "rougeL", "bleu4"),
}
"""The metrics that the field reports for each task."""


class EvaluateSpec(StageBase):
    """Score what ``generate`` wrote against each document's reference answer. Give ``task``, ``metrics`` or both."""

    kind: Literal["evaluate"]
    task: Task | None = Field(None, description="decides how the answer is read out of the text; none: all of the text")
    metrics: tuple[Metric, ...] = Field((), description="default: those of the task")
    bleu_tokenizer: Literal["13a", "intl", "zh", "char"] = Field("13a", description="sacrebleu's; zh for Chinese")

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluateSpec:
        if self.task is None and not self.metrics:
            raise ValueError("give a task, metrics, or both")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics: each of them once")
        return self

    @property
    def measured(self) -> tuple[Metric, ...]:
        """The metrics that are computed."""
        return self.metrics or METRICS_OF[self.task or ""]
