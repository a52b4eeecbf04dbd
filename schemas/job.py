"""The job file: what to read, what to do with it, where it goes. TOML in, one frozen JobSpec out."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.align import WHOLE_CORPUS
from schemas.base import DEFAULT_MODEL, USD, ModelName, Strict, Whole
from schemas.compress import CompressSpec
from schemas.reference import ReferenceSpec
from schemas.stage import GenerateSpec, StageSpec


def digest(value: Any) -> str:
    """128-bit hex digest of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Columns(Strict):
    """Which columns of the input hold what: ``text``, or any of ``instruction``, ``contexts``, ``question``. With both
    named, and with none, a row's own columns decide: ``text`` if it has one, else the parts.
    """

    id: str | None = None
    text: str | None = None
    instruction: str | None = None
    contexts: str | None = None
    question: str | None = None
    answer: str | None = None


class InputSpec(Strict):
    """The corpus: files or folders, local or ``s3://``; also ``.gz`` and ``.zst``."""

    path: tuple[str, ...] = Field(min_length=1)
    format: Literal["auto", "jsonl", "parquet", "csv", "text"] = "auto"
    columns: Columns = Columns()
    max_document_bytes: Whole = Field(32 * 2**20, ge=1, description="a longer row is rejected, not read into memory")

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class OutputSpec(Strict):
    """Where results go: each job makes its own folder ``<path>/<name>-<job id>`` with ``data/`` inside."""

    path: str = "runs"


class TargetSpec(Strict):
    """The model the prompts are meant for: budgets are counted in its tokens, savings at its prices."""

    model: ModelName = DEFAULT_MODEL
    tokenizer: ModelName | None = Field(
        None, description="for hosted models: the local model whose tokenizer counts tokens"
    )
    prices: tuple[str, ...] = Field((), description="provider:model pairs to price the savings at")
    gpu_usd_per_hour: str = Field("2.50", pattern=USD, description="what a worker's hour costs")

    @property
    def tokenizer_model(self) -> str:
        """The local model whose tokenizer counts the target's tokens."""
        return self.tokenizer or self.model


class JobSpec(Strict):
    """One job, whole. ``spec_hash`` says whether two jobs do the same; the stages' own hashes say what is reusable."""

    name: str = Field("job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    input: InputSpec
    output: OutputSpec = OutputSpec()
    target: TargetSpec = TargetSpec()
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    priority: Literal["high", "bulk"] = "bulk"

    @property
    def rates(self) -> tuple[float, ...]:
        """Every document goes through the job once at each of these rates; empty where the spec names one budget."""
        return next((stage.rates for stage in self.stages if isinstance(stage, CompressSpec)), ())

    @model_validator(mode="after")
    def _kinds_once(self) -> JobSpec:
        kinds = [stage.kind for stage in self.stages]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"a job runs each kind of stage once; {', '.join(twice)} stands there more often")
        return self

    @model_validator(mode="after")
    def _whole_corpus_alone(self) -> JobSpec:
        kinds = {stage.kind for stage in self.stages}
        if len(kinds) > 1 and (whole := kinds & WHOLE_CORPUS):
            one = min(whole)
            made = "" if one in ("finetune", "pretrain") else f" (`contextmill {one}` makes them)"
            raise ValueError(f"{one} needs the whole corpus at once: a job of its own{made}")
        return self

    @model_validator(mode="after")
    def _answers_before_scores(self) -> JobSpec:
        kinds = [stage.kind for stage in self.stages]
        if "evaluate" in kinds and "generate" not in kinds[: kinds.index("evaluate")]:
            raise ValueError("evaluate scores what generate wrote: put a generate stage before it")
        return self

    @model_validator(mode="after")
    def _answers_before_recovery(self) -> JobSpec:
        kinds = [stage.kind for stage in self.stages]
        if "recover" in kinds and not {"compress", "generate"} <= set(kinds[: kinds.index("recover")]):
            raise ValueError("recover undoes in answers what compress cut: put compress and generate before it")
        if "recover" in kinds and any(isinstance(stage, ReferenceSpec) for stage in self.stages):
            raise ValueError(
                'recover needs to know what was kept, which fidelity = "reference" cannot say: leave recover out, or '
                'take fidelity = "paper"'
            )
        return self

    @model_validator(mode="after")
    def _slots_for_the_target_alone(self) -> JobSpec:
        kinds = [stage.kind for stage in self.stages]
        if "encode" not in kinds:
            return self
        if "compress" in kinds:
            raise ValueError("encode and compress both shorten the contexts: one of them a job")
        if "generate" in kinds[: kinds.index("encode")]:
            raise ValueError("answers are written from slots: put encode before generate")
        if any(isinstance(stage, GenerateSpec) and stage.backend != "local" for stage in self.stages):
            raise ValueError('an endpoint takes no slots: generate after encode needs backend = "local"')
        return self

    def output_settings(self) -> dict[str, Any]:
        """What decides the rows a job writes; where they go, prices and speed settings are left out."""
        return {
            "columns": self.input.columns.model_dump(mode="json"),
            "format": self.input.format,
            "max_document_bytes": self.input.max_document_bytes,
            "target": [self.target.model, self.target.tokenizer],
            "stages": [stage.output_settings() for stage in self.stages],
        }

    def spec_hash(self) -> str:
        """Digest of ``output_settings``: same input and same spec hash make the same job."""
        return digest(self.output_settings())
