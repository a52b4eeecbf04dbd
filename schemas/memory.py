"""What a memory encoder is, and how it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat, StrictInt, model_validator

from schemas.base import Strict

Layout = Literal["interleaved", "appended", "pooled"]


class EncoderSpec(Strict):
    """An encoder over a frozen causal LM, which reads its slots."""

    layout: Layout = Field("interleaved", description="where memory tokens stand (paper: appended)")
    rank: StrictInt = Field(32, ge=0, description="of the low-rank weights; 0: the encoder's weights are all its own")
    alpha: StrictFloat = Field(64.0, gt=0, description="low-rank weights count alpha / rank times")
    targets: tuple[str, ...] = Field((), description="names of layers that get them; all (paper: q_proj, v_proj)")
    slots: StrictInt = Field(1024, ge=1, description="most slots of a span")


class Lesson(Strict):
    """Spans of ``tokens``, ``ratio`` tokens a slot, for a ``share`` of the steps."""

    tokens: StrictInt = Field(ge=2)
    ratio: StrictFloat = Field(ge=1)
    share: StrictFloat = Field(gt=0, le=1)


class PretrainSpec(Strict):
    """Autoencoding and continuation (the paper, section 2.2): their losses weigh ``autoencoding`` and the rest."""

    encoder: EncoderSpec = EncoderSpec()
    autoencoding: StrictFloat = Field(0.5, ge=0, le=1, description="the paper's lambda: share of rows to be repeated")
    lessons: tuple[Lesson, ...] = Field((Lesson(tokens=128, ratio=4.0, share=1.0),), description="one after the other")
    steps: StrictInt = Field(10_000, ge=1)
    tokens_per_step: StrictInt = Field(32_768, ge=1, description="of contexts")
    learning_rate: StrictFloat = Field(1e-3, gt=0)
    memory_rate: StrictFloat = Field(3.0, gt=0, description="times that, for memory tokens, tags and the map of slots")
    warmup: StrictInt = Field(200, ge=0, description="steps")
    decay: StrictFloat = Field(0.25, ge=0, le=1, description="share of the steps in which the rate goes down to 0")
    clip_norm: StrictFloat = Field(2.0, gt=0)
    seed: StrictInt = Field(0, ge=0)

    @model_validator(mode="after")
    def _all_steps(self) -> PretrainSpec:
        if abs(sum(one.share for one in self.lessons) - 1) > 1e-6:
            raise ValueError("lessons: their shares must add up to 1")
        return self
