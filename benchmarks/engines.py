"""Our compression engines as the speed benchmarks run them: prompts in, texts out; no queue, database or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.compression.engine import Compressed, Made
from pipeline.compression.prompt import Copied, Prompt, Source
from pipeline.compression.registry import Method, Passed, Ranking
from pipeline.compression.stage import Compress
from pipeline.stages import Refusal
from schemas.compress import CompressSpec
from schemas.document import PromptParts
from schemas.job import TargetSpec

if TYPE_CHECKING:
    from pipeline.compression.tokens import Tokenising
    from pipeline.models import ModelPool

Texts = list[str | None]
"""The compressed prompts, in order; None where a prompt was refused."""

Compressor = Callable[[Sequence[PromptParts], Passed], Texts]
"""Compresses prompts and reports the tokens of every forward pass."""


def staged(pool: ModelPool, spec: CompressSpec, target: str) -> Compressor:
    """What the compress stage with ``spec`` does to documents, budgets counted by the model ``target``."""
    stage = Compress(spec, TargetSpec(model=target))

    def compress(prompts: Sequence[PromptParts], passed: Passed) -> Texts:
        engine = stage.engine(pool)
        engine = replace(engine, method=_Telling(engine.method, passed))
        made: dict[int, Made] = {}
        for batch in engine.run([Source(prompt) for prompt in prompts], lambda tokens: None):
            made.update(zip(batch.places, batch.made, strict=True))
        return [_text(made[place]) for place in range(len(prompts))]

    return compress


def reference(
    pool: ModelPool, model: str, dtype: str, batch_tokens: int, options: dict[str, Any], device: str = "auto"
) -> Compressor:
    """Reference fidelity with the library's own ``options``, without a stage around it."""
    from pipeline.compression.reference.reference import Reference
    from pipeline.compression.scoring import Scorer
    from schemas.reference import ReferenceOptions

    loaded = pool.causal_lm(model, dtype, device)
    asked = ReferenceOptions(**options)

    def compress(prompts: Sequence[PromptParts], passed: Passed) -> Texts:
        # A new one each time: it remembers the scores of texts, and no run may live on what another has computed.
        engine = Reference(Scorer(loaded, batch_tokens), loaded.tokenizer, asked)
        return [None if isinstance(one, Refusal) else one.text for one in engine.compress(prompts, passed)]

    return compress


@dataclass(frozen=True, slots=True)
class _Telling:
    """A method whose forward passes are told to ``told``: the engine reports no token twice, however often scored."""

    method: Method
    told: Passed

    @property
    def tokenising(self) -> Tokenising:
        return self.method.tokenising

    @property
    def abreast(self) -> int:
        return self.method.abreast

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        def both(tokens: int) -> None:
            self.told(tokens)
            passed(tokens)

        return self.method.score(prompts, both)


def _text(made: Made) -> str | None:
    if isinstance(made, Compressed):
        return made.fitted.text
    return made.text if isinstance(made, Copied) else None


@dataclass(slots=True)
class Passes:
    """What went through a model: tokens (padding included) of its trunk, in how many calls."""

    tokens: int = 0
    calls: int = 0


@contextmanager
def watched(trunk: Any) -> Iterator[Passes]:
    """Count what ``trunk`` (a module called with ``input_ids``) is given. Replayed graphs pass by uncounted."""
    passes = Passes()

    def count(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = arguments[0] if arguments else named.get("input_ids")
        passes.tokens += ids.numel() if ids is not None else 0
        passes.calls += 1

    handle = trunk.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
