"""One spec per kind of stage: what a ``[[stages]]`` table of a job file may say."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)

DEFAULT_MODEL = "smollm2-135m-instruct"

Whole = Annotated[StrictInt, Field(le=2**31 - 1)]
"""A whole number that every database and library takes. ``true``, ``3.0`` and ``"3"`` are none: nobody means them."""

USD = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"
"""Money as text: exact, to the millionth of a dollar in which it is counted."""


class Strict(BaseModel):
    """Frozen, and a key nobody knows is an error: a typing slip must not silently run another experiment.

    Errors do not repeat the value: someone may have put a password there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class StageBase(Strict):
    """What every stage spec shares."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset({"device", "batch_tokens", "seconds_per_shard"})
    """Settings that change how fast a stage runs, never what it writes: they stay out of the config hash."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    batch_tokens: Whole = Field(16_384, ge=1, description="most padded tokens in one forward pass")
    seconds_per_shard: StrictFloat = Field(60.0, gt=0, description="estimated work in one shard")

    def output_settings(self) -> dict[str, Any]:
        """The settings that decide what the stage writes, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(self.SPEED_ONLY))


class CompressSpec(StageBase):
    """Shorten prompts. Exactly one of ``rate`` and ``target_tokens``: a hard budget over the whole prompt."""

    kind: Literal["compress"]
    method: Literal["llmlingua"] = "llmlingua"
    model: str = Field(DEFAULT_MODEL, description="the small causal LM that scores tokens")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    rate: StrictFloat | None = Field(None, gt=0, le=1, description="compressed / original tokens")
    target_tokens: Whole | None = Field(None, ge=1, description="most tokens of the whole compressed prompt")
    iterative_size: Whole = Field(100, ge=2, description="tokens in a segment of iterative compression (paper: 100)")
    granular_k: StrictFloat = Field(2.0, ge=1, description="the paper's k: how far demonstrations overfill")
    compress_instruction: StrictBool = False
    compress_question: StrictBool = False

    @model_validator(mode="after")
    def _one_budget(self) -> CompressSpec:
        if (self.rate is None) == (self.target_tokens is None):
            raise ValueError("give exactly one of rate and target_tokens")
        return self


class GenerateSpec(StageBase):
    """Let the target model (``[target]``) answer the prompts, on this machine or behind an OpenAI-compatible API."""

    SPEED_ONLY: ClassVar[frozenset[str]] = StageBase.SPEED_ONLY | {
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
    stop: tuple[str, ...] = Field((), description="strings that end an answer; the string itself is cut off")
    system: str | None = Field(None, description="system message, where the chat template has one")
    chat: StrictBool = Field(True, description="apply the model's chat template; off for plain completion")
    # hosted endpoints only
    base_url: str | None = Field(None, description="OpenAI-compatible endpoint; default: the SDK's own")
    concurrency: Whole = Field(8, ge=1, description="calls in flight per worker")
    requests_per_minute: Whole | None = Field(None, ge=1, description="shared by all workers of a job")
    tokens_per_minute: Whole | None = Field(None, ge=1, description="shared by all workers of a job")
    deadline_seconds: StrictFloat = Field(120.0, gt=0, description="for one call, its retries included")
    max_retries: Whole = Field(5, ge=0)
    budget_usd: str | None = Field(None, pattern=USD, description="hard limit; reserved before each call")

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


class CopySpec(StageBase):
    """Hand every document on unchanged: measures the pipeline itself."""

    kind: Literal["copy"]


StageSpec = Annotated[CompressSpec | GenerateSpec | CopySpec, Field(discriminator="kind")]
