"""One spec per method of compression: what a ``[[stages]]`` table with ``kind = "compress"`` may say.

A method's own options live in its own class, so that an option of another method is an unknown key, not a silent one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, field_validator, model_validator

from schemas.base import DEFAULT_MODEL, ModelName, StageBase, Strict, Whole

Share = Annotated[StrictFloat, Field(gt=0, le=1)]
Unit = Literal["token", "word", "phrase", "sentence"]
RankContexts = Literal["question", "perplexity", "bm25", "random"]
Importance = Annotated[
    Literal["surprisal", "surprisal-tfidf"],
    Field(description="what makes a unit worth keeping; surprisal-tfidf: multiplied by the TF-IDF of its words"),
]


def _pairs(value: Any) -> Any:
    """A table as pairs in the order of its keys: a spec can be hashed, and the order of writing means nothing."""
    if not isinstance(value, Mapping):
        if not isinstance(value, list | tuple):  # as a stored spec has them
            raise ValueError("must be a table of keys and rates")
        return value
    for key, rate in value.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f'"{key}" needs a rate above 0 and at most 1')
    return tuple(sorted(value.items()))


class Keep(Strict):
    """What no method may remove from the parts it compresses. What is protected comes out byte for byte."""

    words: tuple[str, ...] = Field((), description="texts that are kept wherever they stand")
    digits: StrictBool = Field(False, description="keep every number")
    patterns: tuple[str, ...] = Field((), description="regular expressions; what they match is kept")
    identifiers: StrictBool = Field(False, description="keep names as code writes them: snake_case, camelCase, a.b(c)")
    end: StrictFloat = Field(
        0.0, ge=0, le=1, description="of what the budget has left, the share that the end of the last context gets"
    )

    @field_validator("words")
    @classmethod
    def _no_empty_word(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an empty text stands everywhere; leave it out")
        return value

    @field_validator("patterns")
    @classmethod
    def _regular(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            import regex  # type: ignore[import-untyped]

            for number, pattern in enumerate(value):
                try:
                    regex.compile(pattern)
                except (regex.error, RecursionError) as error:  # brackets in brackets, hundreds deep
                    raise ValueError(f"patterns[{number}] is no regular expression: {error}") from None
        return value


class CompressBase(StageBase):
    """What paper and reference fidelity share."""

    kind: Literal["compress"]
    method: str
    fidelity: Literal["paper", "reference"]

    @property
    def scoring_models(self) -> tuple[str, ...]:
        """Names of the models whose weights decide the output."""
        model = getattr(self, "model", None)
        return (model,) if model else ()


class CompressSpec(CompressBase):
    """Shorten prompts. Exactly one of ``rate``, ``target_tokens``, ``rates``: a hard budget over the whole prompt."""

    RANKS_BY_TAU: ClassVar[bool] = False
    """Whether the method itself sees to ``tau_instruction`` and ``tau_question``."""

    fidelity: Literal["paper"] = "paper"
    rate: Share | None = Field(None, description="compressed / original tokens")
    target_tokens: Whole | None = Field(None, ge=1, description="most tokens of the whole compressed prompt")
    rates: tuple[Share, ...] = Field((), description="every document once at each of these rates, in one job")
    budget: Literal["prompt", "contexts"] = Field(
        "prompt", description="what it is of: the whole prompt, or its contexts, beside which the rest counts in full"
    )
    unit: Unit = Field("word", description="what is kept or removed whole")
    tau_instruction: Share = Field(1.0, description="share of the instruction that stays; 1: verbatim (paper: 0.85)")
    tau_question: Share = Field(1.0, description="share of the question that stays; 1: verbatim (paper: 0.9)")
    keep: Keep = Keep()
    structure: Literal["none", "tags", "json"] = Field("none", description="what the contexts hold beside prose")
    key_rates: Annotated[tuple[tuple[str, Share], ...], BeforeValidator(_pairs)] = Field(
        (), description='rates of the values of JSON keys: {title = 1.0, "items.body" = 0.3}'
    )

    hierarchy: StrictBool = Field(False, description="budgets for paragraphs and sentences by importance, too")
    removed_phrases: Annotated[StrictInt, Field(ge=0, le=100)] = Field(
        0, description="list so many of the most important removed phrases after the contexts"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> CompressSpec:
        if [self.rate is None, self.target_tokens is None, not self.rates].count(False) != 1:
            raise ValueError("give exactly one of rate, target_tokens and rates")
        if len({f"{rate:g}" for rate in self.rates}) < len(self.rates):  # as they stand in the copies' ids
            raise ValueError("rates: each of them once, different in their first six digits")
        return self

    @model_validator(mode="after")
    def _structure_fits(self) -> CompressSpec:
        if self.key_rates and self.structure != "json":
            raise ValueError('key_rates need structure = "json"')
        if self.removed_phrases and self.structure == "json":
            raise ValueError("removed_phrases: a list after the contexts would be no JSON")
        return self


class CausalSpec(CompressSpec):
    """What all methods share that score by a causal LM."""

    model: ModelName = Field(DEFAULT_MODEL, description="the small causal LM that scores tokens")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class IterativeSpec(CausalSpec):
    """What LLMLingua and LongLLMLingua share: the choice of contexts and iterative compression."""

    RANKS_BY_TAU: ClassVar[bool] = True
    ADDED: ClassVar[frozenset[str]] = frozenset({"frame"})

    iterative_size: Whole = Field(100, ge=2, description="tokens in a segment of iterative compression (paper: 100)")
    granular_k: StrictFloat = Field(2.0, ge=1, description="the paper's k: how far demonstrations overfill")
    rank_contexts_by: RankContexts = Field("perplexity", description="which contexts are taken first")
    importance: Importance = "surprisal"
    skim: StrictFloat = Field(
        0.0, ge=0, lt=1, description="share of a context's tokens that TF-IDF removes before the model reads"
    )
    frame: StrictBool = Field(False, description="what demonstrations have in common is the last to go")
    iterative: StrictBool = Field(True, description="false: what was taken is read once (the paper's ablation)")
    budget_controller: StrictBool = Field(True, description="false: all contexts are taken (the paper's ablation)")
    dynamic_ratio: StrictBool = Field(
        True, description="false: one rate for all parts that may be compressed (the paper's ablation)"
    )


class LLMLinguaSpec(IterativeSpec):
    """LLMLingua (arXiv 2310.05736)."""

    method: Literal["llmlingua"] = "llmlingua"
    rank_contexts_by: Literal["perplexity", "bm25", "random"] = Field(
        "perplexity", description="which contexts are taken first (paper: perplexity; random: its ablation)"
    )


class LongLLMLinguaSpec(IterativeSpec):
    """LongLLMLingua (arXiv 2310.06839). Prompts without a question are compressed by LLMLingua."""

    method: Literal["longllmlingua"]
    iterative_size: Whole = Field(200, ge=2, description="tokens in a segment of iterative compression (paper: 200)")
    granular_k: StrictFloat = Field(1.0, ge=1, description="how far contexts overfill their budget (paper: 2)")
    rank_contexts_by: RankContexts = Field("question", description="which contexts are taken first (paper: question)")
    contrastive: StrictBool = Field(True, description="score units by what the question does to their surprisal")
    delta_tau: StrictFloat = Field(1.0, ge=0, le=1, description="how much more the best context keeps; 0: off")
    reorder: StrictBool | Literal["best-last"] = Field(
        True, description="contexts in the order of their rank, the best first (or last, next to the question)"
    )


class LLMLingua2Spec(CompressSpec):
    """LLMLingua-2 (arXiv 2403.12968): any encoder with a token-classification head of two labels, remove and keep."""

    method: Literal["llmlingua2"]
    model: ModelName = Field("llmlingua2-minilm", description="the token classifier that scores")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class SelectiveContextSpec(CausalSpec):
    """Selective-Context (arXiv 2310.06201): units by their self-information in the whole prompt, read once."""

    method: Literal["selective-context"]
    unit: Unit = Field("phrase", description="what is kept or removed whole (the paper's best: phrases)")
    importance: Importance = "surprisal"


class SentencesSpec(CausalSpec):
    """Whole sentences, those with the highest mean surprisal within their context."""

    method: Literal["sentences"]
    unit: Unit = Field("sentence", description="what is kept or removed whole")


class TruncationSpec(CompressSpec):
    """Cut off what is too much."""

    method: Literal["truncation"]
    cut: Literal["head", "tail", "middle"] = Field("tail", description="what goes; the rest of the text is kept")


class RandomSpec(CompressSpec):
    """Units drawn at random. Which ones follows from the document's text and the seed alone."""

    method: Literal["random"]
    seed: Whole = Field(0, ge=0)


class TFIDFSpec(CompressSpec):
    """Units by the TF-IDF of their words; whole contexts by their likeness to the question, where there is one."""

    method: Literal["tfidf"]


class BM25Spec(CompressSpec):
    """Contexts, sentences in them and units in these by BM25 against the question, else against the whole text."""

    method: Literal["bm25"]
    k1: StrictFloat = Field(1.2, ge=0, description="how soon a repeated word counts for nothing more")
    b: StrictFloat = Field(0.75, ge=0, le=1, description="how much a long passage is held against itself")


def compress_tag(stage: Mapping[str, Any] | CompressBase) -> str:
    """What tells the specs apart: the method (LLMLingua where none is named), and whether it is the reference's."""
    said = stage.model_dump(include={"method", "fidelity"}) if isinstance(stage, CompressBase) else stage
    method = str(said.get("method", "llmlingua"))
    return f"{method}:reference" if said.get("fidelity") == "reference" else method
