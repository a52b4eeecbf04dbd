"""Several workers on one device: what processes of their own gain where one interpreter cannot keep it busy.

    python -m benchmarks.several_workers --data DATA --dtype float16 --workers 1 2 3 --json FILE

Every worker is a process that loads the model, warms up, waits for the others, and compresses prompts of its own:
``--prompts`` of 14 distinct GSM8K demonstrations to 200 tokens, and ``--documents`` of 4,096 tokens at rate 0.25, in
both fidelities. Seconds are from the first begin to the last end. Tokens are the scorer's own; ``of forward`` is what
all workers together pass through the model in a second, over the bare forward pass of one (rows of 512 tokens).
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engines import Compressor, reference, staged, watched
from benchmarks.measuring import ceilings, facts, save, table
from benchmarks.speed import counter
from benchmarks.workloads import documents, gsm8k
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool
from schemas.compress import LLMLinguaSpec
from schemas.document import PromptParts

LENGTH = 4096
COLUMNS = ("work", "fidelity", "workers", "prompts", "tokens", "seconds", "tokens/s", "times one", "of forward")
_PATIENCE = 600
"""Seconds to wait for the others."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One worker's share: the second it began and ended in, its prompts, their tokens, and those passed."""

    begun: float
    ended: float
    prompts: int
    tokens: int
    passed: int


def main() -> None:
    arguments = _parse()
    loaded = ModelPool(arguments.device).causal_lm(arguments.model, arguments.dtype)
    forward = ceilings(Scorer(loaded, arguments.batch_tokens), 512)["forward"]
    figures: dict[str, Any] = {"facts": facts(loaded.device, arguments.dtype), "forward": forward, "rows": []}
    del loaded
    for workers in arguments.workers:
        for (work, fidelity), turns in _run(arguments, workers).items():
            figures["rows"].append(_row(work, fidelity, turns, figures))
        save(arguments.json, figures)
        print(table(figures["rows"], COLUMNS), flush=True)
    print(f"bare model, rows of 512 tokens: {forward:,.0f} tokens/s")
    print(figures["facts"])


def _row(work: str, fidelity: str, turns: list[Turn], figures: dict[str, Any]) -> dict[str, Any]:
    seconds = max(one.ended for one in turns) - min(one.begun for one in turns)
    tokens, passed = (sum(getattr(one, name) for one in turns) for name in ("tokens", "passed"))
    rate = tokens / seconds
    alone = [one["tokens/s"] for one in figures["rows"] if (one["work"], one["fidelity"]) == (work, fidelity)]
    return {
        "work": work, "fidelity": fidelity, "workers": len(turns), "prompts": sum(one.prompts for one in turns),
        "tokens": tokens, "seconds": seconds, "tokens/s": rate, "times one": rate / alone[0] if alone else 1.0,
        "of forward": passed / seconds / figures["forward"],
    }  # fmt: skip


def _run(arguments: argparse.Namespace, workers: int) -> dict[tuple[str, str], list[Turn]]:
    """What so many workers did side by side, by work and fidelity."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU of its parent
    together, told = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=_work, args=(arguments, place, together, told)) for place in range(workers)]
    for one in processes:
        one.start()
    found: dict[tuple[str, str], list[Turn]] = {}
    waiting = workers
    while waiting:
        try:
            for name, turn in told.get(timeout=1):
                found.setdefault(name, []).append(turn)
            waiting -= 1
        except queue.Empty:  # who was ended from outside tells nothing
            if any(one.exitcode for one in processes):
                break
    for one in processes:
        one.join(_PATIENCE if not waiting else 1)
    if waiting or any(one.exitcode for one in processes):
        raise SystemExit(f"{workers} workers: one failed; what it said stands above")
    return found


def _work(arguments: argparse.Namespace, place: int, together: Any, told: Any) -> None:
    found: list[tuple[tuple[str, str], Turn]] = []
    try:
        for name, compress, prompts, trunk, count in _shares(arguments, place):
            compress(prompts[: arguments.warm_up], lambda tokens: None)
            tokens = sum(count([prompt.render() for prompt in prompts]))
            together.wait(_PATIENCE)
            with watched(trunk) as passed:
                begun = time.time()
                compress(prompts, lambda tokens: None)
                ended = time.time()
            found.append((name, Turn(begun, ended, len(prompts), tokens, sum(passed))))
    except BaseException:
        together.abort()  # nobody waits for who is gone
        raise
    finally:
        told.put(found)


def _shares(
    arguments: argparse.Namespace, place: int
) -> Iterator[tuple[tuple[str, str], Compressor, list[PromptParts], Any, Any]]:
    """Work and fidelity, who does it, this worker's prompts, the trunk that reads them and who counts tokens."""
    pool, model, batch = ModelPool(arguments.device, limit=1), arguments.model, arguments.batch_tokens
    loaded = pool.causal_lm(model, arguments.dtype)
    trunk, count = loaded.model.get_decoder(), counter(loaded.tokenizer)  # type: ignore[operator, unused-ignore]
    most = max(arguments.workers)
    works: dict[str, tuple[list[PromptParts], dict[str, Any], dict[str, Any]]] = {}
    if some := arguments.prompts:
        works["gsm8k"] = gsm8k(arguments.data, some * most, "distinct"), {"target_tokens": 200}, {"target_token": 200}
    if some := arguments.documents:
        texts = documents(arguments.data, some * most, LENGTH, loaded.tokenizer)
        works["documents"] = texts, {"rate": 0.25}, {"rate": 0.25}
    common = {"dtype": arguments.dtype, "device": str(loaded.device), "batch_tokens": batch}
    for work, (prompts, budget, options) in works.items():
        spec = LLMLinguaSpec(kind="compress", model=model, **budget, **common)
        mine = prompts[place::most]
        yield (work, "paper"), staged(pool, spec, model), mine, trunk, count
        again = reference(pool, model, arguments.dtype, batch, options, str(loaded.device))
        yield (work, "reference"), again, mine, trunk, count


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k, prose, squality and qmsum in it")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the scorer, by name or folder")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--prompts", type=int, default=1024, help="of each worker")
    parser.add_argument("--documents", type=int, default=256, help="of each worker")
    parser.add_argument("--warm-up", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
