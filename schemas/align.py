"""What a job that trains a small model on a target's answers may be told; of an ``align`` stage all of it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat, model_validator

from schemas.base import DEFAULT_MODEL, ModelName, StageBase, Whole

WHOLE_CORPUS = frozenset({"align", "distill", "finetune", "pretrain"})
"""Kinds of stage whose output for one document depends on all of them: one shard, never cut, split or bisected, and
no document's result is taken over by another job. Such a stage is its job's only one."""


class TrainingSpec(StageBase):
    """What stages that train share. The pairs that are learned are the job's documents, each with its ``answer``."""

    SPEED_ONLY: ClassVar[frozenset[str]] = StageBase.SPEED_ONLY | {"checkpoint_seconds"}

    kind: str
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the passes; bfloat16 is autocast")
    learning_rate: StrictFloat = Field(2e-4, gt=0, description="its peak: warm-up, then half a cosine down to 0")
    warmup: StrictFloat = Field(0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: StrictFloat = Field(0.0, ge=0)
    clip_norm: StrictFloat = Field(1.0, gt=0, description="most gradient norm of a step")
    epochs: Whole = Field(3, ge=1)
    documents_per_step: Whole = Field(32, ge=1)
    max_tokens: Whole = Field(2048, ge=16, description="of prompt and answer; a longer prompt loses its beginning")
    held_out: StrictFloat = Field(0.1, gt=0, lt=1, description="share of prompts never trained on, by their hash")
    kl_weight: StrictFloat = Field(0.0, ge=0, le=1, description="of KL(teacher, model); the answers have the rest")
    seed: Whole = Field(0, ge=0, description="of the first weights and of the order of documents")
    batch_tokens: Whole = Field(4096, ge=1, description="most padded tokens in one forward and backward pass")
    checkpoint_seconds: StrictFloat = Field(60.0, ge=0, description="between checkpoints")


class AlignSpec(TrainingSpec):
    """Train a low-rank adapter on (prompt, answer) pairs, so that a small model expects what the target model writes.

    LLMLingua, section 3.3, equation (8).
    """

    kind: Literal["align"]
    model: ModelName = Field(
        DEFAULT_MODEL, description="the small causal LM that scores tokens; it is trained, not changed"
    )
    rank: Whole = Field(16, ge=1, description="of the low-rank weights")
    lora_alpha: Whole = Field(32, ge=1, description="they are scaled by alpha / rank")
    teacher: str | None = Field(None, description="local target model whose distribution is imitated, too")

    @model_validator(mode="after")
    def _teacher_and_weight(self) -> AlignSpec:
        if (self.teacher is None) != (self.kl_weight == 0):
            raise ValueError("teacher and kl_weight (above 0) come together, or neither")
        return self
