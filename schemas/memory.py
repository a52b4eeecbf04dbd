"""What a memory encoder is, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from schemas.base import ModelName, StageBase, Strict, Whole

Layout = Literal["interleaved", "appended", "pooled"]
Precision = Literal["float16", "int8", "int4"]


_NEAR = 1e-9
"""What division of floats may be off: 42 tokens at 1.4 a slot are 30 slots, and not one more."""


def slots_of(tokens: int, ratio: float) -> int:
    """Slots for a span of so many tokens: one for ``ratio`` of them, rounded up; never more than tokens."""
    return min(tokens, max(1, math.ceil(tokens / ratio - _NEAR)))


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

    @property
    def slots(self) -> int:
        """Of such a span."""
        return slots_of(self.tokens, self.ratio)


class EncoderTraining(StageBase):
    """What all trainings of an encoder share."""

    SPEED_ONLY: ClassVar[frozenset[str]] = StageBase.SPEED_ONLY | {"checkpoint_seconds", "processes"}
    ADDED: ClassVar[frozenset[str]] = frozenset({"interpolation"})

    kind: str
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the passes; bfloat16 is autocast")
    encoder: EncoderSpec = EncoderSpec()
    begin: ModelName | None = Field(None, description="a trained encoder to go on from: its name, or its folder")
    interpolation: StrictFloat = Field(
        1.0, gt=0, le=1, description="how far the encoder moves from that to what was learned: it forgets less"
    )
    lessons: tuple[Lesson, ...] = Field((Lesson(tokens=128, ratio=4.0, share=1.0),), description="one after the other")
    mixed: StrictBool = Field(False, description="each step draws its lesson, by their shares: none is forgotten")
    steps: Whole = Field(10_000, ge=1)
    learning_rate: StrictFloat = Field(1e-3, gt=0)
    memory_rate: StrictFloat = Field(3.0, gt=0, description="times that, for memory tokens, tags and the map of slots")
    warmup: StrictInt = Field(200, ge=0, description="steps")
    decay: StrictFloat = Field(0.25, ge=0, le=1, description="share of the steps in which the rate goes down to 0")
    clip_norm: StrictFloat = Field(2.0, gt=0)
    seed: Whole = Field(0, ge=0)
    held_out: StrictFloat = Field(0.05, gt=0, lt=1, description="share of texts never trained on, by their hash")
    measured: Whole = Field(64, ge=1, description="most held-out spans that are written out again")
    checkpoint_seconds: StrictFloat = Field(60.0, ge=0, description="between checkpoints")
    processes: Whole = Field(1, ge=0, description="that share each step, on a GPU each; 0: as many as there are GPUs")

    @model_validator(mode="after")
    def _a_device_each(self) -> Self:
        if self.processes != 1 and ":" in self.device:
            raise ValueError(f"device {self.device} is one, and each of several processes has its own: say cuda")
        return self

    @model_validator(mode="after")
    def _between_two(self) -> Self:
        if self.interpolation < 1 and self.begin is None:
            raise ValueError("interpolation is between what was begun with and what was learned: name the first, begin")
        return self

    @model_validator(mode="after")
    def _sound_lessons(self) -> Self:
        _check_lessons("lessons", self.lessons, self.encoder)
        return self


def _check_lessons(name: str, lessons: Sequence[Lesson], encoder: EncoderSpec) -> None:
    if not lessons:
        raise ValueError(f"{name}: name at least one: [{{ tokens = 128, ratio = 4.0, share = 1.0 }}]")
    if abs((whole := sum(one.share for one in lessons)) - 1) > 1e-6:
        raise ValueError(f"{name}: their shares must add up to 1, not {whole:g}")
    for one in lessons:
        if one.slots > encoder.slots:
            raise ValueError(
                f"{name}: {one.tokens} tokens at {one.ratio:g} a slot take {one.slots} slots, and a span has "
                f"{encoder.slots} at most: raise ratio or encoder.slots"
            )


CONTINUATION = 64
"""Tokens of each of the ``continuations`` to which slots are fitted."""


class EncodeSpec(StageBase):
    """Put the contexts of every prompt into memory slots, by an encoder of the target's own."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"slots", "refine", "continuations"})

    kind: Literal["encode"]
    encoder: ModelName = Field(description="its name (`contextmill icae pretrain` gives it one), or its folder")
    span: Whole | None = Field(None, ge=1, description="most tokens of a span; those of the encoder's last lesson")
    ratio: StrictFloat | None = Field(None, ge=1, description="tokens a slot; those of the encoder's last lesson")
    slots: Whole | None = Field(None, ge=1, description="of each span, but no more than tokens; in place of a ratio")
    refine: Whole = Field(0, ge=0, le=10_000, description="most steps in which slots are fitted to their span")
    continuations: Whole = Field(0, ge=0, le=256, description="of the target's own to which they are fitted, too")
    keep_text: StrictInt = Field(0, ge=0, description="contexts of so many tokens and fewer stay text")
    precision: Precision = Field("float16", description="of the slots as they are stored")
    group: Literal[32, 64] = Field(64, description="numbers of a slot that share a scale, in int8 and int4")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the passes")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.ratio is not None and self.slots is not None:
            raise ValueError(
                "a span has either so many slots, whatever its length, or one for so many tokens: name slots or ratio"
            )
        if self.continuations and not self.refine:
            raise ValueError("continuations are of what refine fits slots to: say refine, how many steps")
        return self

    def output_settings(self) -> dict[str, Any]:
        """Without the encoder's name: its revision is in the stage's identity, by whatever name it goes; and without a
        group that groups nothing."""
        said = super().output_settings()
        return {name: one for name, one in said.items() if name not in ("encoder", *self._idle)}

    @property
    def _idle(self) -> tuple[str, ...]:
        return ("group",) if self.precision == "float16" else ()


class PretrainSpec(EncoderTraining):
    """Train an encoder of the target's own on the job's documents, which are texts.

    Autoencoding and continuation (the paper, section 2.2): their losses weigh ``autoencoding`` and the rest.
    """

    kind: Literal["pretrain"] = "pretrain"
    autoencoding: StrictFloat = Field(0.5, ge=0, le=1, description="the paper's lambda: share of rows to be repeated")
    distilled: StrictFloat = Field(
        0.0, ge=0, le=1,
        description="going on: weight of what the target expects that has read the text; 0: the next token alone",
    )  # fmt: skip
    tokens_per_step: Whole = Field(32_768, ge=1, description="of contexts")

    @model_validator(mode="after")
    def _something_to_go_on_with(self) -> Self:
        _check_distilled(self.distilled, self.autoencoding)
        return self


def _check_distilled(distilled: float, autoencoding: float) -> None:
    if distilled and autoencoding == 1:
        raise ValueError("distilled is of texts that are gone on with, and autoencoding = 1 leaves none: lower it")


class Rehearsal(Strict):
    """What texts among the rows of a fine-tuning are learned for in each of its steps, as in pretraining: so that
    repeating them, and going on, is not forgotten."""

    weight: StrictFloat = Field(0.5, gt=0, lt=1, description="of their loss; that of answers weighs the rest")
    tokens_per_step: Whole = Field(8_192, ge=1, description="of texts")
    autoencoding: StrictFloat = Field(0.8, ge=0, le=1, description="share of spans to be repeated")
    distilled: StrictFloat = Field(0.0, ge=0, le=1, description="going on: weight of what the target expects")
    lessons: tuple[Lesson, ...] = Field((), description="each step draws one, by their shares; those of the stage")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _check_distilled(self.distilled, self.autoencoding)
        return self


class FinetuneSpec(EncoderTraining):
    """Train an encoder on what is asked about contexts: each of the job's documents is a context, a question and an
    answer (the paper, section 2.3).

    What is asked stands in the frame in which a ``generate`` stage of the same ``chat`` and ``system`` asks it.
    """

    ADDED: ClassVar[frozenset[str]] = EncoderTraining.ADDED | {"rehearsal"}

    kind: Literal["finetune"] = "finetune"
    steps: Whole = Field(2_000, ge=1)
    rows_per_step: Whole = Field(32, ge=1)
    learning_rate: StrictFloat = Field(5e-4, gt=0)
    warmup: StrictInt = Field(100, ge=0, description="steps")
    autoencoding: StrictFloat = Field(
        0.1, ge=0, lt=1, description="weight of repeating the contexts' spans, so that it is not forgotten"
    )
    multi_span: StrictFloat = Field(
        0.1, ge=0, le=1, description="share of rows whose context is cut into one span more than it needs"
    )
    most_spans: Whole = Field(16, ge=1, description="of a document; a longer one is left out")
    chat: StrictBool = Field(True, description="apply the model's chat template, as generate does")
    system: str | None = Field(None, description="system message, where the chat template has one")
    max_new_tokens: Whole = Field(64, ge=1, description="of an answer that is measured")
    rehearsal: Rehearsal | None = Field(None, description="of texts among the rows, which nothing is asked about")

    @model_validator(mode="after")
    def _sound_rehearsal(self) -> Self:
        if self.rehearsal is not None and self.rehearsal.lessons:
            _check_lessons("rehearsal.lessons", self.rehearsal.lessons, self.encoder)
        return self

    @property
    def weight_of_texts(self) -> float:
        """In a step's loss."""
        return self.rehearsal.weight if self.rehearsal else 0.0

    @property
    def rehearsed(self) -> PretrainSpec | None:
        """The pretraining that its texts are learned by, if any."""
        if self.rehearsal is None:
            return None
        said = self.rehearsal.model_dump(exclude={"weight", "lessons"})
        shared = {name: getattr(self, name) for name in ("dtype", "encoder", "steps", "seed", "held_out")}
        return PretrainSpec(**shared, **said, lessons=self.rehearsal.lessons or self.lessons, mixed=True)
