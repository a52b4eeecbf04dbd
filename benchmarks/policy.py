"""Whether drafting as far as it pays ever loses: ``draft_tokens = "auto"`` beside plain decoding, by documents at once.

    python -m benchmarks.policy FOLDER --target MODEL --dtype bfloat16 --json FILE
    python -m benchmarks.policy FOLDER --target MODEL --drafters SMALL --dtype bfloat16 --json FILE
    python -m benchmarks.policy FOLDER --target MODEL --tasks gsm8k noise --rows 1 2 4 --documents 4 --new 32    # a CPU

FOLDER is that of ``benchmarks.drafting``; its task noise has prompts of random tokens, answers drawn at a temperature
of 2, of which hardly a copy passes (greedy ones go in circles). For that task alone a MODEL may be a folder without
weights, which are random then. Plain decoding and drafting take turns, so that what else the machine does meets both.
Tokens a second over plain decoding's, median and range over the pairs: of whole runs, and while writing (the time of
one token is subtracted). ``first``: the same of the first run, in which the policy knows nothing and ways are recorded;
before every later one the same is done once, untimed. Exits 1 where a median is below --bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drafting import TASKS
from benchmarks.measuring import facts, save, table
from benchmarks.plans import models
from benchmarks.random_weights import is_weightless, with_weights
from pipeline.generation.local import Generation
from pipeline.generation.prompts import Prompt
from pipeline.generation.timing import timed
from pipeline.generation.tuning import Decode, decoding, planned
from pipeline.models import LoadedModel, ModelPool
from schemas.stage import GenerateSpec

NOISE, HOT = "noise", 2.0
BAR = 0.97
PLANS: dict[str, dict[str, Any]] = {"plain": {}, "auto": {"draft_tokens": "auto"}}


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: tokens, and seconds in all and for reading."""

    tokens: int
    seconds: float
    read: float
    made: list[Generation]

    @property
    def rate(self) -> float:
        """Tokens a second, reading included."""
        return self.tokens / self.seconds

    @property
    def writing(self) -> float | None:
        """Tokens a second, without reading and the first of each answer; None where nothing else was written, or in no
        time that could be told from that of reading."""
        written, seconds = self.tokens - len(self.made), self.seconds - self.read
        return written / seconds if written and seconds > 0 else None


def main() -> None:
    arguments = _parse()
    pool = ModelPool(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        names = [
            _weighty(name, Path(folder, str(at))) for at, name in enumerate([arguments.target, *arguments.drafters])
        ]
        target, drafters = models(pool, names[0], names[1:], arguments.dtype)
    found: list[dict[str, Any]] = []
    for task in arguments.tasks:
        for rows in arguments.rows:
            prompts = list(islice(_prompts(task, target, arguments), max(rows, arguments.documents)))
            stage = GenerateSpec(kind="generate", dtype=arguments.dtype, temperature=HOT * (task == NOISE))
            line = _compared(target, drafters, prompts, min(rows, len(prompts)), stage, arguments.runs, pool)
            found.append({"task": task, **line})
            print(json.dumps(found[-1]), flush=True)
            save(arguments.json, {"facts": facts(target.device, arguments.dtype), "rows": found})
    print(table(found, list(found[0])))
    lost = [one for one in found if min(one["times"], one["writing"] or one["times"]) < arguments.bar]
    print(f"{len(lost)} of {len(found)} below {arguments.bar}")
    raise SystemExit(1 if lost else 0)


def _weighty(name: str, spare: Path) -> str:
    """The model, or one of its shapes in the folder ``spare``."""
    return str(with_weights(Path(name), spare)) if is_weightless(Path(name)) else name


def _prompts(task: str, target: LoadedModel, arguments: argparse.Namespace) -> Iterator[Prompt]:
    if task == NOISE:
        random, size = np.random.default_rng(0), target.model.get_input_embeddings().weight.shape[0]
        for seed in count():
            yield Prompt(random.integers(5, size, int(random.integers(160, 240))).tolist(), arguments.new, seed)
    for asked in TASKS[task](arguments.data):
        ids = target.tokenizer(asked.parts.render())["input_ids"]
        if len(ids) + arguments.new <= target.window:
            yield Prompt(ids, arguments.new)


def _compared(
    target: LoadedModel, drafters: Sequence[LoadedModel], prompts: Sequence[Prompt], rows: int, stage: GenerateSpec,
    runs: int, pool: ModelPool,
) -> dict[str, Any]:  # fmt: skip
    vars(target.model).pop("contextmill_policies", None)  # what it learned of other prompts
    works: dict[str, Decode] = {}
    for name, settings in PLANS.items():
        some = drafters if name == "auto" else []
        spec = planned(stage, {**settings, "drafters": [one.ref.name for one in some]})
        assert isinstance(spec, GenerateSpec), spec
        works[name] = decoding(target, spec, some, prompts, rows, pool)
    works["plain"](None)
    works["auto"](2)  # what passes take is measured once on a machine, and no part of the first run
    read = {name: _reading(work, runs, target) for name, work in works.items()}
    found = [_pair(works, read, number % 2 == 1, number > 0, target) for number in range(1 + runs)]
    (first_plain, first), *pairs = found
    whole = [auto.rate / plain.rate for plain, auto in pairs]
    writing = [auto.writing / plain.writing for plain, auto in pairs if auto.writing and plain.writing]
    made = pairs[-1][1].made
    drafted, passes = sum(one.drafted for one in made), sum(one.passes for one in made)
    same = sum(mine.tokens == its.tokens for mine, its in zip(made, pairs[-1][0].made, strict=True))
    return {
        "rows": rows, "documents": len(prompts), "plain tokens/s": statistics.median(one.rate for one, _ in pairs),
        "times": statistics.median(whole), "lowest": min(whole), "highest": max(whole),
        "writing": statistics.median(writing) if writing else None,
        "writing, lowest": min(writing, default=None), "writing, highest": max(writing, default=None),
        "first": first.rate / first_plain.rate, "tokens a pass": pairs[-1][1].tokens / passes,
        "drafted": drafted, "same answers": same,
    }  # fmt: skip


def _reading(work: Decode, runs: int, target: LoadedModel) -> float:
    """Seconds until the first tokens are there, by an engine that is there."""
    work(1)
    return statistics.median(timed(partial(work, 1), target.device)[1] for _ in range(runs))


def _pair(
    works: dict[str, Decode], read: dict[str, float], turned: bool, warm: bool, target: LoadedModel
) -> tuple[Timed, Timed]:
    """(plain, auto), one after the other, the second first if ``turned``."""
    found: dict[str, Timed] = {}
    for name in ("auto", "plain") if turned else ("plain", "auto"):
        if warm:
            works[name](None)  # an engine is kept for the last kind of decoding alone
        made, seconds = timed(partial(works[name], None), target.device)
        found[name] = Timed(sum(len(one.tokens) for one in made), seconds, read[name], made)
    return found["plain"], found["auto"]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--target", required=True)
    parser.add_argument("--drafters", nargs="*", default=[], help="the largest first; layers:N: the target's own")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, NOISE], default=["gsm8k", "summaries", NOISE])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--documents", type=int, default=8, help="answered, and at least as many as at once")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5, help="pairs behind the first")
    parser.add_argument("--bar", type=float, default=BAR)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    weightless = [name for name in (given.target, *given.drafters) if is_weightless(Path(name))]
    if weightless and set(given.tasks) != {NOISE}:
        parser.error(f"{' and '.join(weightless)} without weights: random ones will do for --tasks {NOISE} alone")
    return given


if __name__ == "__main__":
    main()
