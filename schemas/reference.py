"""The options of llmlingua 0.2.2's compress_prompt, structured_compress_prompt and compress_json, as data.

Names and defaults are the library's. Here they are checked before anything runs, and ``context_budget``, which the
library hands to ``eval``, is parsed.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from schemas.base import DEFAULT_MODEL, ModelName, Strict, Whole
from schemas.compress import CompressBase


def _finite(value: Any) -> Any:
    """One complaint, where a union of two kinds of numbers has two."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number, without quotes")
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Number = Annotated[int | float, BeforeValidator(_finite)]
Share = Annotated[Number, Field(ge=0, le=1)]

_STEP = re.compile(r"\s*([-+*/])\s*(\d+(?:\.\d*)?|\.\d+)\s*")

ValueType = Literal[
    "str", "string", "int", "integer", "float", "number", "bool", "boolean", "list", "List", "dict", "dictionary",
    "tuple",
]  # fmt: skip
"""Types of JSON values, in the library's spellings. It refuses sets."""


Condition = Literal["none", "before", "after", "none_condition", "before_condition", "after_condition"]

Order = Literal["original", "two_stage", "sort"]


class JsonKey(Strict):
    """What happens to one top-level key of a JSON object."""

    rate: Share
    compress: StrictBool
    value_type: ValueType
    pair_remove: StrictBool = Field(description="whether the key-value filter may drop the pair")


class ReferenceOptions(Strict):
    """One call's options. ``json_config`` makes it compress_json, ``structured`` structured_compress_prompt.

    compress_json fixes ``add_instruction``, ``concate_question`` and ``strict_preserve_uncompressed`` (all false) and
    has names of its own for the context filter and the order of contexts: ``*_keyvalue*``.
    """

    structured: StrictBool = False
    json_config: dict[StrictStr, JsonKey] | None = None
    rate: Share = Field(0.5, description="share of the tokens that is kept where target_token is -1")
    target_token: Number = Field(-1, description="tokens of the contexts alone; -1: by rate")
    iterative_size: Whole = Field(200, ge=1, description="tokens in a window of token-level compression")
    force_context_ids: tuple[Annotated[StrictInt, Field(ge=0)], ...] | None = None
    force_context_number: StrictInt | None = Field(None, description="0 ends the choice after one; else ignored")
    use_sentence_level_filter: StrictBool = False
    use_context_level_filter: StrictBool = True
    use_token_level_filter: StrictBool = True
    keep_split: StrictBool = Field(False, description="keep runs of token 13, a line break in Llama 1 and 2")
    keep_first_sentence: Whole = Field(0, ge=0)
    keep_last_sentence: Whole = Field(0, ge=0)
    keep_sentence_number: Whole = Field(0, ge=0)
    high_priority_bonus: Number = 100
    context_budget: StrictStr = Field("+100", description="what the context filter adds to the budget: +100, *1.5")
    token_budget_ratio: Number = Field(1.4, description="the sentence filter's budget over the token filter's")
    condition_in_question: Literal[
        "none", "before", "after", "none_condition", "before_condition", "after_condition"
    ] = "none"
    reorder_context: Order = "original"
    dynamic_context_compression_ratio: Number = 0.0
    condition_compare: StrictBool = False
    add_instruction: StrictBool = False
    rank_method: Literal["llmlingua", "longllmlingua"] = "llmlingua"
    concate_question: StrictBool = True
    strict_preserve_uncompressed: StrictBool = True
    use_keyvalue_level_filter: StrictBool = Field(False, description="compress_json only")
    reorder_keyvalue: Order = Field("original", description="compress_json only")
    clean_up_tokenization_spaces: StrictBool = Field(
        True, description="decode as transformers 4.35 does by default, ' .' becoming '.'; false: as tokens say"
    )

    @field_validator("context_budget")
    @classmethod
    def _known_arithmetic(cls, value: str) -> str:
        if value and not re.fullmatch(f"(?:{_STEP.pattern})+", value):
            raise ValueError("context_budget is steps of + - * / and a number, such as +100 or *1.5")
        if any(step == "/" and float(number) == 0 for step, number in _STEP.findall(value)):
            raise ValueError("context_budget divides by zero")
        return value

    @model_validator(mode="after")
    def _one_function(self) -> ReferenceOptions:
        if self.json_config is None and (self.use_keyvalue_level_filter or self.reorder_keyvalue != "original"):
            raise ValueError("use_keyvalue_level_filter and reorder_keyvalue need json_config")
        return self

    @property
    def condition(self) -> str:
        """``none``, ``before`` or ``after``: what a context's or sentence's score is conditioned on."""
        plain = self.condition_in_question.removesuffix("_condition")
        if self.rank_method == "llmlingua":
            return "none"
        # Only a bare "none" is turned into "after"; "none_condition" stays.
        return "after" if plain == "none" and not self.conditioned else plain

    @property
    def conditioned(self) -> bool:
        """Whether the question stands before the contexts when tokens are scored."""
        return self.condition_compare or self.condition_in_question.endswith("_condition")

    @property
    def tagged(self) -> bool:
        """Whether contexts are segmented by tags: structured prompts, and JSON, which is turned into them."""
        return self.structured or self.json_config is not None

    @property
    def tokens(self) -> int | None:
        """Tokens that ``target_token`` asks for, and less than none are none; None: by rate."""
        return None if self.target_token == -1 else max(0, int(self.target_token))

    def context_limit(self, target: float) -> float:
        """``target`` after the steps of ``context_budget``: products before sums, as Python reads them."""
        terms, sign = [target], [1.0]
        for step, number in _STEP.findall(self.context_budget):
            value = float(number) if "." in number else int(number)
            if step in "+-":
                terms.append(value)
                sign.append(1.0 if step == "+" else -1.0)
            else:
                terms[-1] = terms[-1] * value if step == "*" else terms[-1] / value
        total = terms[0]
        for one, way in zip(terms[1:], sign[1:], strict=True):
            total = total + one if way > 0 else total - one
        return total


class ReferenceSpec(CompressBase):
    """llmlingua 0.2.2 exactly, with its own options: for comparisons. It may overshoot, as the library does."""

    method: Literal["llmlingua"] = "llmlingua"
    fidelity: Literal["reference"]
    model: ModelName = Field(DEFAULT_MODEL, description="the small causal LM that scores tokens")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    options: ReferenceOptions = ReferenceOptions()
