"""What each method of compression and each of its options costs, and whether the answer survives it.

    python -m benchmarks.methods_cost examples/gsm8k.jsonl --target-tokens 240
    python -m benchmarks.methods_cost FILE --rate 0.33 --only longllmlingua bm25 --json

FILE holds JSON lines with ``contexts``, ``question`` and, for the last column, ``answer``. Printed are, for every
variant: tokens that went through the model (padding included) and tokens it scored, per original token and over all
passes; seconds (of this machine: compare rows, not machines); the share of the budget that was used; and in how many
prompts the reference answer still stands word for word in what is left, of those in which it did before. No target
model is asked: the last column says what a reader could still find, not what one would.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pipeline.compression.engine import Compressed, Engine
from pipeline.compression.prompt import Prompt, Source
from pipeline.compression.registry import Method, Passed, Ranking
from pipeline.compression.stage import Compress
from pipeline.evaluation.answers import references
from pipeline.models import ModelPool
from schemas.compress import CausalSpec
from schemas.document import SEPARATOR, PromptParts
from schemas.job import JobSpec, TargetSpec
from schemas.stage import SPECS

VARIANTS: dict[str, dict[str, Any]] = {
    "llmlingua": {},
    "llmlingua, contexts by bm25": {"rank_contexts_by": "bm25"},
    "llmlingua, contexts at random": {"rank_contexts_by": "random"},
    "llmlingua, surprisal x TF-IDF": {"importance": "surprisal-tfidf"},
    "llmlingua, skim 0.3": {"skim": 0.3},
    "llmlingua, hierarchy": {"hierarchy": True},
    "llmlingua, removed phrases": {"removed_phrases": 5},
    "llmlingua, not iterative": {"iterative": False},
    "llmlingua, no budget controller": {"budget_controller": False},
    "longllmlingua": {},
    "longllmlingua, as published": {"granular_k": 2.0, "delta_tau": 0.3},
    "longllmlingua, level": {"delta_tau": 0.3},
    "longllmlingua, not contrastive": {"contrastive": False},
    "longllmlingua, contexts by bm25": {"rank_contexts_by": "bm25"},
    "longllmlingua, skim 0.3": {"skim": 0.3},
    "selective-context": {},
    "selective-context, surprisal x TF-IDF": {"importance": "surprisal-tfidf"},
    "sentences": {},
    "bm25": {},
    "tfidf": {},
    "random": {},
    "random, sentences": {"unit": "sentence"},
    "truncation": {},
    "truncation, cut head": {"cut": "head"},
    "truncation, cut middle": {"cut": "middle"},
}


@dataclass(slots=True)
class Counted:
    """Tokens that went through the model (padding and what was read again included), and those it was asked about."""

    read: int = 0
    scored: int = 0

    def reading(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A hook before the model's forward pass."""
        del module, args
        self.read += kwargs["input_ids"].numel()

    def score(self, method: Method) -> Method:
        """``method``, counted."""

        def counting(prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
            def count(tokens: int) -> None:
                self.scored += tokens
                passed(tokens)

            return method.score(prompts, count)

        return cast(Method, SimpleNamespace(tokenising=method.tokenising, abreast=method.abreast, score=counting))


def main() -> None:
    """Print a row for every variant."""
    arguments = _parse()
    rows = [json.loads(row) for row in arguments.file.read_text(encoding="utf-8").splitlines() if row.strip()]
    rows = rows[: arguments.documents]
    pool = ModelPool(arguments.device)
    budget = {"target_tokens": arguments.target_tokens} if arguments.target_tokens else {"rate": arguments.rate}
    budget |= {"budget": "contexts"} if arguments.contexts else {}
    for variant, options in VARIANTS.items():
        method = variant.partition(",")[0]
        if arguments.only and not any(variant.startswith(one) for one in arguments.only):
            continue
        figures = measure(_stage({"method": method, **budget, **options}, arguments), pool, rows)
        print(json.dumps({"variant": variant, **figures}) if arguments.json else _line(variant, figures), flush=True)


def measure(stage: Compress, pool: ModelPool, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures of one variant over all rows."""
    built = stage.engine(pool)
    counted, model = Counted(), _trunk(stage, pool)
    hook = model.register_forward_pre_hook(counted.reading, with_kwargs=True) if model else None
    parts = [PromptParts(row.get("instruction", ""), tuple(row["contexts"]), row["question"]) for row in rows]
    begun = time.perf_counter()
    engine = Engine(built.preparing, counted.score(built.method) if model else built.method)
    batches = list(engine.run([Source(one) for one in parts], lambda tokens: None))
    seconds = time.perf_counter() - begun
    if hook:
        hook.remove()
    made = {place: one for batch in batches for place, one in zip(batch.places, batch.made, strict=True)}
    done = {place: one for place, one in made.items() if isinstance(one, Compressed)}
    tokens = sum(one.original for one in done.values())
    there = [place for place in done if _holds(SEPARATOR.join(rows[place]["contexts"]), rows[place])]
    kept = sum(_holds(done[place].fitted.text.removesuffix(rows[place]["question"]), rows[place]) for place in there)
    return {
        "prompts": len(done),
        "read_per_token": round(counted.read / tokens, 3),
        "scored_per_token": round(counted.scored / tokens, 3),
        "seconds": round(seconds, 2),
        "used": round(sum(one.fitted.tokens for one in done.values()) / sum(one.budget for one in done.values()), 4),
        "answers": len(there),
        "answers_kept": kept,
    }


def _trunk(stage: Compress, pool: ModelPool) -> Any:
    """The part of the scoring model that every token goes through; None where no model scores."""
    spec = stage.spec
    return (
        pool.causal_lm(spec.model, spec.dtype, spec.device).model.get_decoder()
        if isinstance(spec, CausalSpec)
        else None
    )


def _holds(text: str, row: dict[str, Any]) -> bool:
    """Whether one of the row's reference answers stands in the text as words of its own."""
    asked = references(str(row.get("answer") or ""))
    return any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text, re.IGNORECASE) for one in asked if one)


def _stage(options: dict[str, Any], arguments: argparse.Namespace) -> Compress:
    stage = {"kind": "compress", "device": arguments.device, "batch_tokens": arguments.batch_tokens, **options}
    if "model" in SPECS[options["method"]].model_fields:
        stage |= {"model": arguments.model, "dtype": arguments.dtype}
    job = JobSpec.model_validate({"input": {"path": "-"}, "target": {"model": arguments.model}, "stages": [stage]})
    return Compress(job.stages[0], TargetSpec(model=arguments.model))  # type: ignore[arg-type]


def _line(variant: str, figures: dict[str, float]) -> str:
    return (
        f"{variant:40} {figures['read_per_token']:6.2f} read, {figures['scored_per_token']:5.2f} scored per token  "
        f"{figures['seconds']:8.2f} s  {figures['used']:7.1%} used  "
        f"{figures['answers_kept']:.0f}/{figures['answers']:.0f} answers kept"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, help="at most so many rows (default: all)")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the scorer, and whose tokens are counted")
    parser.add_argument("--rate", type=float, default=0.33)
    parser.add_argument("--target-tokens", type=int, help="instead of --rate")
    parser.add_argument("--contexts", action="store_true", help="the budget is that of the contexts alone")
    parser.add_argument("--only", nargs="+", help="variants that begin so")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
