"""What three rates cost in one job step, against one rate alone and against three jobs, for every method.

    OMP_NUM_THREADS=2 python -m benchmarks.several_rates examples/gsm8k.jsonl --documents 8
    python -m benchmarks.several_rates FILE --documents 256 --device cuda --dtype float16 --batch-tokens 65536

The bare engine, its models loaded before the clock starts. "one" is the mean over the rates, each alone; "jobs" their
sum, each with an engine of its own, as three jobs have; "step" all of them in one engine. Ratios are of medians over
the repetitions, which take turns. "same" counts the copies whose text is that of the rate alone: batches do not matter
in float32, up to ties.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.measuring import facts, save, table
from benchmarks.workloads import of_file
from pipeline.compression.engine import Compressed, Made
from pipeline.compression.prompt import Source
from pipeline.compression.registry import METHODS
from pipeline.compression.stage import Compress
from pipeline.models import ModelNotFound, ModelPool, resolve_device
from schemas.compress import CompressSpec
from schemas.document import PromptParts
from schemas.job import TargetSpec
from schemas.stage import StageSpec

Clock = Callable[[], float]
COLUMNS = "method", "one", "step", "jobs", "step_over_one", "step_over_jobs", "same"


def main() -> None:
    arguments = _parse()
    pool, prompts = ModelPool(arguments.device), of_file(arguments.file, arguments.documents)
    device = torch.device(resolve_device(arguments.device))
    said = {"documents": len(prompts), "rates": arguments.rates, "cpu_time": arguments.cpu_time}
    figures: dict[str, Any] = {**facts(device, arguments.dtype), **said, "methods": []}
    for method in arguments.methods:
        try:
            figures["methods"].append(_measured(_stage(method, arguments), pool, prompts, arguments))
        except ModelNotFound as error:  # hours of the other methods must not be lost for a model that is not here
            print(f"{method} is left out: {error}", file=sys.stderr)
        save(arguments.to, figures)
    print(table(figures["methods"], COLUMNS))
    print({name: value for name, value in figures.items() if name != "methods"})


def _stage(method: str, arguments: argparse.Namespace) -> Compress:
    settings = {"kind": "compress", "method": method, "rates": arguments.rates, "batch_tokens": arguments.batch_tokens}
    known = {"model": arguments.classifier if method == "llmlingua2" else arguments.model, "dtype": arguments.dtype}
    spec: Any = TypeAdapter(StageSpec)
    fields = type(spec.validate_python(settings)).model_fields
    own = {name: value for name, value in known.items() if name in fields}
    made: CompressSpec = spec.validate_python({**settings, **own})
    return Compress(made, TargetSpec(model=arguments.model))


def _measured(
    stage: Compress, pool: ModelPool, prompts: Sequence[PromptParts], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each way, and their ratios."""
    alone = {rate: [Source(parts, rate) for parts in prompts] for rate in arguments.rates}
    together = [Source(parts, rate) for parts in prompts for rate in arguments.rates]
    clock: Clock = time.process_time if arguments.cpu_time else time.perf_counter
    _run(stage, pool, together[: 2 * len(arguments.rates)], clock)
    jobs, step, same = [], [], 0
    for _ in range(arguments.repeat):
        by_rate = {rate: _run(stage, pool, sources, clock) for rate, sources in alone.items()}
        jobs.append(sum(seconds for seconds, _ in by_rate.values()))
        seconds, texts = _run(stage, pool, together, clock)
        step.append(seconds)
        expected = [text for texts in zip(*(texts for _, texts in by_rate.values()), strict=True) for text in texts]
        same = sum(text == other for text, other in zip(texts, expected, strict=True))
    three, one_step = statistics.median(jobs), statistics.median(step)
    one = three / len(alone)
    return {
        "method": stage.spec.method, "one": round(one, 3), "step": round(one_step, 3), "jobs": round(three, 3),
        "step_over_one": round(one_step / one, 2), "step_over_jobs": round(one_step / three, 2),
        "same": f"{same} of {len(together)}", "seconds": {"jobs": jobs, "step": step},
    }  # fmt: skip


def _run(stage: Compress, pool: ModelPool, sources: Sequence[Source], clock: Clock) -> tuple[float, list[str]]:
    """Seconds of one engine over the sources, and their texts in order."""
    engine = stage.engine(pool)
    begun = clock()
    made: dict[int, Made] = {}
    for batch in engine.run(sources, lambda tokens: None):
        made.update(zip(batch.places, batch.made, strict=True))
    seconds = clock() - begun
    found = [made[place] for place in range(len(sources))]
    return seconds, [one.fitted.text if isinstance(one, Compressed) else repr(one) for one in found]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 0.33, 0.2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="scores (where a causal LM does) and counts")
    parser.add_argument("--classifier", default="llmlingua2-minilm", help="what llmlingua2 reads with")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of CPU, where other work shares the machine")
    parser.add_argument("--to", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
