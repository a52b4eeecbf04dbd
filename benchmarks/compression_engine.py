"""Tokens per second of the bare compression engine: no queue, no database, no files. What the pipeline is measured by.

    python -m benchmarks.compression_engine examples/gsm8k.jsonl --target-tokens 240
    python -m benchmarks.compression_engine FILE --documents 2048 --dtype bfloat16 --batch-tokens 65536 --json

The documents (JSON lines with ``instruction``, ``contexts``, ``question``, or ``text``) are repeated in turn up to
``--documents``; each repetition gets a number in front of its contexts, so that none is scored once for all. Counted
are the original tokens of the prompts in the target's tokenizer. ``forward`` is the scorer's trunk over full batches
of the same tokens without head, cache or selection: the ceiling.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.compression.engine import Compressed
from pipeline.compression.prompt import Source
from pipeline.compression.scoring import Scorer
from pipeline.compression.stage import Compress
from pipeline.models import LoadedModel, ModelPool
from schemas.compress import LLMLinguaSpec
from schemas.document import PromptParts
from schemas.job import TargetSpec


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Rates are original tokens per second; ``used`` is tokens kept over tokens asked for."""

    documents: int
    tokens: int
    seconds: float
    tokens_per_second: float
    forward_tokens_per_second: float
    used: float
    device: str
    dtype: str
    torch: str


def main() -> None:
    arguments = _parse()
    spec = LLMLinguaSpec(
        kind="compress", model=arguments.model, dtype=arguments.dtype, rate=arguments.rate, device=arguments.device,
        target_tokens=arguments.target_tokens, batch_tokens=arguments.batch_tokens,
        iterative_size=arguments.iterative_size,
    )  # fmt: skip
    pool = ModelPool(arguments.device)
    sources = [Source(parts) for parts in read(arguments.file, arguments.documents)]
    stage = Compress(spec, TargetSpec(model=arguments.target or spec.model))
    warm = sources[: arguments.warm_up]
    list(stage.engine(pool).run(warm, lambda tokens: None))
    figures = [_measure(stage, spec, pool, sources) for _ in range(arguments.repeat)]
    for one in figures:
        print(json.dumps(asdict(one)) if arguments.json else _line(one))


def read(path: Path, count: int | None) -> list[PromptParts]:
    """``count`` prompts from the rows of ``path``, in turn; all of them once where no count is given."""
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines() if row.strip()]
    return [_parts(rows[place % len(rows)], place // len(rows)) for place in range(count or len(rows))]


def _parts(row: dict[str, Any], turn: int) -> PromptParts:
    contexts = row.get("contexts") or [row["text"]]
    mark = f"({turn}) " if turn else ""
    return PromptParts(row.get("instruction", ""), tuple(mark + text for text in contexts), row.get("question", ""))


def _measure(stage: Compress, spec: LLMLinguaSpec, pool: ModelPool, sources: Sequence[Source]) -> Figures:
    loaded = pool.causal_lm(spec.model, spec.dtype, spec.device)
    begun = time.perf_counter()
    made = [one for batch in stage.engine(pool).run(sources, lambda tokens: None) for one in batch.made]
    seconds = time.perf_counter() - begun
    done = [one for one in made if isinstance(one, Compressed)]
    tokens = sum(one.original for one in done)
    return Figures(
        len(done), tokens, round(seconds, 3), round(tokens / seconds, 1), round(_forward(loaded, spec), 1),
        round(sum(one.fitted.tokens for one in done) / max(1, sum(one.budget for one in done)), 4),
        _device(loaded), spec.dtype, torch.__version__,
    )  # fmt: skip


@torch.inference_mode()
def _forward(loaded: LoadedModel, spec: LLMLinguaSpec, length: int = 512) -> float:
    scorer = Scorer(loaded, spec.batch_tokens)
    rows = max(1, (spec.batch_tokens if loaded.device.type == "cuda" else 1024) // length)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, scorer.head.weight.shape[0], (rows, length)))
    ids = ids.to(loaded.device)
    seconds = []
    for _ in range(4):
        _wait(loaded)
        begun = time.perf_counter()
        scorer.trunk(input_ids=ids, use_cache=False)
        _wait(loaded)
        seconds.append(time.perf_counter() - begun)
    return rows * length / sorted(seconds)[1]


def _wait(loaded: LoadedModel) -> None:
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)


def _device(loaded: LoadedModel) -> str:
    if loaded.device.type == "cuda":
        return torch.cuda.get_device_name(loaded.device)
    return f"cpu, {torch.get_num_threads()} threads"


def _line(one: Figures) -> str:
    return (
        f"{one.documents} documents, {one.tokens} tokens in {one.seconds} s = {one.tokens_per_second} tokens/s "
        f"(forward pass alone {one.forward_tokens_per_second}); {one.used:.1%} of the budget used; "
        f"{one.device}, {one.dtype}, torch {one.torch}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--target", help="model whose tokenizer counts; default: the scorer")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--rate", type=float)
    budget.add_argument("--target-tokens", type=int)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--iterative-size", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=2, help="documents compressed before the clock starts")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
