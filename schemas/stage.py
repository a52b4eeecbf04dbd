"""One spec per kind of stage: what a ``[[stages]]`` table of a job file may say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    Tag,
    field_validator,
    model_validator,
)

from schemas.align import AlignSpec, TrainingSpec
from schemas.base import USD, ModelName, StageBase, Whole
from schemas.compress import (
    BM25Spec,
    LLMLingua2Spec,
    LLMLinguaSpec,
    LongLLMLinguaSpec,
    RandomSpec,
    SelectiveContextSpec,
    SentencesSpec,
    TFIDFSpec,
    TruncationSpec,
    compress_tag,
)
from schemas.drafting import COPIED_BELOW, MOST_COPIED, Plan
from schemas.evaluate import EvaluateSpec
from schemas.memory import EncodeSpec, FinetuneSpec, PretrainSpec
from schemas.recover import RecoverSpec
from schemas.reference import ReferenceSpec

MOST_DRAFTS = 48
"""Checked at once: an idle row has as many columns and some."""


def _number_or_auto(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31):
        raise ValueError('must be a whole number of at least 0, or "auto"')
    return value


def _lenience_or_auto(value: object) -> object:
    if value != "auto" and (not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < math.inf):
        raise ValueError('must be a number greater than or equal to 1, or "auto"')
    return value


class GenerateSpec(StageBase):
    """Let the target model (``[target]``) answer the prompts, on this machine or behind an OpenAI-compatible API."""

    SPEED_ONLY: ClassVar[frozenset[str]] = StageBase.SPEED_ONLY | {
        "drafters", "draft_tokens", "draft_rounds", "draft_tail", "draft_matrix", "draft_lenience", "draft_earlier",
        "concurrency", "requests_per_minute", "tokens_per_minute", "deadline_seconds", "max_retries", "budget_usd",
    }  # fmt: skip

    kind: Literal["generate"]
    backend: Literal["local", "openai"] = "local"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_new_tokens: Whole = Field(256, ge=1)
    temperature: StrictFloat = Field(0.0, ge=0, description="0 is greedy")
    top_p: StrictFloat = Field(1.0, gt=0, le=1)
    top_k: Whole = Field(0, ge=0, description="0 is off")
    seed: Whole = Field(0, ge=0, description="with the document's content hash it seeds that document's samples")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="strings that end an answer; the string itself is cut off"
    )
    system: str | None = Field(None, description="system message, where the chat template has one")
    chat: StrictBool = Field(True, description="apply the model's chat template; off for plain completion")
    # local models only
    draft_tokens: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = Field(
        0, description="tokens copied ahead and checked in one pass; 0 is off, auto: drafts as far as they pay"
    )
    drafters: tuple[ModelName, ...] = Field(
        (), max_length=3, description="models that draft, or layers:N of the target, the largest first"
    )
    draft_rounds: tuple[Annotated[Whole, Field(ge=1)], ...] = Field((), description="of each drafter; default: 2")
    draft_tail: Whole = Field(0, ge=0, description="tokens copied behind a drafter's")
    draft_matrix: tuple[tuple[Annotated[Whole, Field(ge=0)], ...], ...] = Field(
        (), description="who drafts for whom, in rounds: instead of draft_rounds, draft_tokens and draft_tail"
    )
    draft_lenience: Annotated[float | Literal["auto"], BeforeValidator(_lenience_or_auto)] = Field(
        1.0, description="drafters pass a draft of probability over 1 / this; auto: by what is accepted"
    )
    draft_earlier: Whole = Field(
        2048, ge=0, le=2**14, description="tokens of earlier answers to copy from; 0: neither these nor bigrams of them"
    )
    # hosted endpoints only
    base_url: str | None = Field(None, description="OpenAI-compatible endpoint; default: the SDK's own")
    concurrency: Whole = Field(8, ge=1, description="calls in flight per worker")
    requests_per_minute: Whole | None = Field(None, ge=1, description="shared by all workers of a job")
    tokens_per_minute: Whole | None = Field(None, ge=1, description="shared by all workers of a job")
    deadline_seconds: StrictFloat = Field(120.0, gt=0, description="for one call, its retries included")
    max_retries: Whole = Field(5, ge=0)
    budget_usd: str | None = Field(None, pattern=USD, description="hard limit; reserved before each call")

    @property
    def plan(self) -> Plan:
        """What drafts, in numbers; every drafter has two rounds where none are given. ``auto``: the largest as many as
        may be, over a few copies."""
        if self.draft_matrix:
            return Plan.of_matrix(self.draft_matrix, self.draft_lenience)
        rounds = self.draft_rounds or (2,) * len(self.drafters)
        if self.draft_tokens != "auto":
            return Plan(self.draft_tokens, rounds, self.draft_tail, self.draft_lenience)
        copied = COPIED_BELOW if self.drafters else MOST_COPIED
        plan = Plan(copied, rounds, self.draft_tail, self.draft_lenience, True)
        if self.drafters and not self.draft_rounds:
            longer = (replace(plan, rounds=(most, *rounds[1:])) for most in (8, 4))
            return next((one for one in longer if one.most <= MOST_DRAFTS), plan)
        return plan

    @model_validator(mode="after")
    def _matrix(self) -> GenerateSpec:
        """Before ``_drafting``, which needs its plan."""
        matrix, number = self.draft_matrix, len(self.drafters) + 1
        if matrix and (self.draft_rounds or self.draft_tokens or self.draft_tail):
            raise ValueError("draft_matrix says all of draft_rounds, draft_tokens and draft_tail: drop these")
        if matrix and [len(row) for row in matrix] != list(range(number, 0, -1)):
            raise ValueError(
                f"draft_matrix has a row for the target and for each drafter: here {number}, of {number} numbers and "
                "one less from row to row, rounds of the smaller drafters and tokens that are copied behind these"
            )
        if any(not row[0] for row in matrix[:-1]):
            raise ValueError("draft_matrix: rows begin with rounds of the next smaller drafter, at least 1")
        return self

    @model_validator(mode="after")
    def _drafting(self) -> GenerateSpec:
        if len(self.plan.rounds) != len(self.drafters):
            raise ValueError(f"draft_rounds names {len(self.draft_rounds)} numbers for {len(self.drafters)} drafters")
        if self.draft_tail and not self.drafters:
            raise ValueError("draft_tail stands behind what drafters draft; without any, raise draft_tokens")
        lenient = self.draft_lenience == "auto" or self.draft_lenience > 1
        if lenient and not (self.drafters and (self.plan.copied or len(self.drafters) > 1)):
            raise ValueError("draft_lenience is a drafter's with what is copied for it: it needs both")
        if self.plan.most > MOST_DRAFTS:
            raise ValueError(
                f"{self.plan.most} drafts at once, and at most {MOST_DRAFTS} can be: a drafter writes its rounds times "
                "what is drafted for it and one"
            )
        if self.plan.most and self.backend != "local":
            raise ValueError('drafts need backend = "local": an endpoint drafts by itself, if at all')
        return self

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = urlsplit(value)
            plain = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            plain = None
        if not plain:
            raise ValueError("an endpoint is http://HOST[:PORT]/PATH or https://...")
        if "@" in url.netloc or url.query or url.fragment:
            raise ValueError("no user, password or query in base_url: a key comes from CONTEXTMILL_API_KEY alone")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _backend_settings(self) -> GenerateSpec:
        if self.backend == "local" and (self.base_url or self.budget_usd):
            raise ValueError('base_url and budget_usd need backend = "openai"')
        return self


class DistillSpec(TrainingSpec):
    """Train a drafter for the target model on what that answered: all layers of a small model, as a model of its own.

    It learns the very tokens that the target reads and writes, the end of an answer among them, and with a
    ``kl_weight`` how likely the target finds every token.
    """

    kind: Literal["distill"]
    layers: Whole | None = Field(None, ge=1, description="of the target, evenly spread: a shallow copy to begin from")
    drafter: ModelName | None = Field(None, description="a small model of the target's vocabulary to begin from")
    answers: GenerateSpec = Field(GenerateSpec(kind="generate"), description="the stage whose answers these are")
    documents_per_step: Whole = Field(8, ge=1, description="few, as there are few answers for so many weights")
    measured: Whole = Field(32, ge=1, description="most held-out prompts that are answered again with the drafter")

    @model_validator(mode="before")
    @classmethod
    def _rate_of_beginning(cls, given: Any) -> Any:
        """What a whole model knows is soon lost; a shallow copy says nothing yet."""
        if isinstance(given, dict) and "learning_rate" not in given:
            return {**given, "learning_rate": 1e-4 if given.get("drafter") else 1e-3}
        return given

    @model_validator(mode="after")
    def _one_beginning(self) -> DistillSpec:
        if (self.layers is None) == (self.drafter is None):
            raise ValueError("layers (a shallow copy of the target) or drafter (a model's name): one of them")
        return self

    def beginning(self, target: str) -> str:
        """What is begun from, in words."""
        return self.drafter or f"{self.layers} layer{'' if self.layers == 1 else 's'} of {target}"

    def output_settings(self) -> dict[str, Any]:
        """Those of ``answers`` without what changes their speed alone."""
        return {**super().output_settings(), "answers": self.answers.output_settings()}


class CopySpec(StageBase):
    """Hand every document on unchanged: measures the pipeline itself."""

    kind: Literal["copy"]


def _tag(stage: Any) -> str | None:
    """What tells the specs apart: the kind of stage, and for compress its method."""
    kind = stage.get("kind") if isinstance(stage, Mapping) else getattr(stage, "kind", None)
    return compress_tag(stage) if kind == "compress" else kind


StageSpec = Annotated[
    Annotated[LLMLinguaSpec, Tag("llmlingua")]
    | Annotated[ReferenceSpec, Tag("llmlingua:reference")]
    | Annotated[LongLLMLinguaSpec, Tag("longllmlingua")]
    | Annotated[LLMLingua2Spec, Tag("llmlingua2")]
    | Annotated[SelectiveContextSpec, Tag("selective-context")]
    | Annotated[SentencesSpec, Tag("sentences")]
    | Annotated[TruncationSpec, Tag("truncation")]
    | Annotated[RandomSpec, Tag("random")]
    | Annotated[TFIDFSpec, Tag("tfidf")]
    | Annotated[BM25Spec, Tag("bm25")]
    | Annotated[GenerateSpec, Tag("generate")]
    | Annotated[AlignSpec, Tag("align")]
    | Annotated[DistillSpec, Tag("distill")]
    | Annotated[PretrainSpec, Tag("pretrain")]
    | Annotated[FinetuneSpec, Tag("finetune")]
    | Annotated[EncodeSpec, Tag("encode")]
    | Annotated[RecoverSpec, Tag("recover")]
    | Annotated[EvaluateSpec, Tag("evaluate")]
    | Annotated[CopySpec, Tag("copy")],
    Discriminator(_tag),
]

SPECS: dict[str, type[StageBase]] = {tag.tag: spec for spec, tag in map(get_args, get_args(get_args(StageSpec)[0]))}
"""Kind of stage, or method of compression -> its spec."""
