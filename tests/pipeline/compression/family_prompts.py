"""Prompts made ready without a stage: what a method is given, and what it makes of it."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from compress_models import tokenizer_of

from pipeline.compression.marking import build_marking
from pipeline.compression.preparing import Preparing
from pipeline.compression.prompt import Part, Prompt, Source
from pipeline.compression.registry import Method, Ranking
from pipeline.compression.tokens import Tokenising
from schemas.compress import CompressSpec
from schemas.document import PromptParts
from schemas.job import JobSpec

MODEL_FREE = ("truncation", "random", "tfidf", "bm25")
BY_MODEL = ("llmlingua", "longllmlingua", "llmlingua2", "selective-context", "sentences")


@functools.cache
def tokenising() -> Tokenising:
    """The tokenizer of the small random models of these tests."""
    return Tokenising(tokenizer_of(500))


def spec_of(method: str = "random", **settings: Any) -> CompressSpec:
    """The spec of a method, as a job file would give it; half of the tokens unless told otherwise."""
    budget = {} if {"rate", "rates", "target_tokens"} & settings.keys() else {"rate": 0.5}
    stage = {"kind": "compress", "method": method, **budget, **settings}
    spec = JobSpec.model_validate({"input": {"path": "x"}, "stages": [stage]}).stages[0]
    assert isinstance(spec, CompressSpec)
    return spec


def prompts_of(*sources: PromptParts | Source, spec: CompressSpec | None = None) -> list[Prompt]:
    """The sources made ready; none of them may be refused or copied."""
    spec = spec or spec_of()
    preparing = Preparing(spec, tokenising(), tokenising(), build_marking(spec), same_tokenizer=True)
    wanted = [one if isinstance(one, Source) else Source(one) for one in sources]
    ready = preparing.prepare(wanted)
    assert all(isinstance(one, Prompt) for one in ready), ready
    return [one for one in ready if isinstance(one, Prompt)]


def prompt_of(source: PromptParts, **settings: Any) -> Prompt:
    """One of them."""
    return prompts_of(source, spec=spec_of(**settings))[0]


def ranking_of(method: Method, *prompts: Prompt) -> list[Ranking]:
    """What the method makes of them."""
    return method.score(prompts, lambda tokens: None)


def best_first(prompt: Prompt, ranking: Ranking) -> list[str]:
    """The text of all units, the best first."""
    texts = [text for part in prompt.parts for text in units_of(part)]
    return [texts[place] for place in np.argsort(-ranking.margins, kind="stable").tolist()]


def units_of(part: Part) -> list[str]:
    """The text of every unit of a part."""
    edges = [*part.places.tolist(), len(part.text)]
    return [part.text[begin:end] for begin, end in itertools.pairwise(edges)]
