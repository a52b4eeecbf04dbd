"""Task quality under compression: methods times ratios times tasks as jobs, then the tables of differences.

    python -m benchmarks.quality FOLDER --out runs/quality --target MODEL --dtype bfloat16 --batch-tokens 65536
    python -m benchmarks.quality FOLDER --out runs/try --tasks gsm8k squad --methods paper truncation --documents 8

FOLDER holds gsm8k/, bbh/, lost_in_the_middle/, squad/ and qmsum/ as JSON lines. The same command goes on where an
earlier one stopped: what is done is taken over. Corpora and job files lie in --out, tables there as JSON and HTML.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.quality.equal_tokens import achieved_rates
from benchmarks.quality.matrix import METHODS, Method, Planned, Setup, plan, planned_or_none, read_methods
from benchmarks.quality.running import Runner, database, runner
from benchmarks.quality.tables import Done, against, report
from benchmarks.quality.tasks import TASKS
from schemas.base import DEFAULT_MODEL


def main() -> None:
    arguments = _parse()
    setup = _setup(arguments)
    methods = _methods(arguments)
    engine = database(setup.out)
    planned = list(plan(setup, arguments.tasks, methods))
    if arguments.plan:
        for one in planned:
            print(f"{one.spec.name}: {', '.join(f'{1 / rate:.3g}x' for rate in one.rates) or 'as it is'}")
        return
    done: dict[str, list[Done]] = defaultdict(list)
    with runner(engine, setup.out, arguments.workers) as worker:
        first = [one for one in planned if not one.builds_on_another]
        _run(worker, first, done)
        like = [(task, method) for task in arguments.tasks for method in methods if method.like]
        equal = [_at_equal_tokens(engine, setup, task, method, done[task]) for task, method in like]
        _run(worker, [one for one in [*planned, *equal] if one is not None and one not in first], done)
    _print(engine, setup.out, done)


def _run(worker: Runner, planned: Sequence[Planned], done: dict[str, list[Done]]) -> None:
    """All of them at once."""
    began = time.perf_counter()
    for one, job in [(one, worker.begin(one.spec)) for one in planned]:
        if worker.end(job, one.spec.name):
            done[one.task].append((one, job))
            print(f"{one.spec.name}: job {job}, done after {time.perf_counter() - began:.1f} s", flush=True)


def _at_equal_tokens(engine: Engine, setup: Setup, task: str, method: Method, done: list[Done]) -> Planned | None:
    """The method at what the one it is like achieved, where that is done."""
    rates: list[float] = []
    for planned, job in _of(method.like, done):
        rates += achieved_rates(engine, job, planned, rates)
    return planned_or_none(setup, task, method, tuple(rates)) if rates else None


def _of(name: str | None, done: list[Done]) -> list[Done]:
    return [one for one in done if one[0].method is not None and one[0].method.name == name]


def _print(engine: Engine, out: Path, done: dict[str, list[Done]]) -> None:
    for task, jobs in done.items():
        if jobs[0][0].method is not None or jobs[0][0].corpus != TASKS[task].full:
            raise SystemExit(f"{task}: the job of full prompts, which all others are set against, is not done")
        print(f"\n{report(engine, out, task, jobs)}")
        for planned, job in jobs:
            like = _of(planned.method.like, jobs) if planned.method and planned.method.like else []
            if like:
                print(f"\n{against(engine, (planned, job), like)}")


def _setup(arguments: argparse.Namespace) -> Setup:
    shared = {"device": arguments.device, "batch_tokens": arguments.batch_tokens, "seconds_per_shard": 600.0}
    return Setup(
        data=arguments.data, out=arguments.out, target=arguments.target, scorer=arguments.scorer,
        documents=arguments.documents, max_new_tokens=arguments.max_new_tokens,
        generate={**shared, "dtype": arguments.dtype, "chat": arguments.chat},
        compress={**shared, "dtype": arguments.scorer_dtype},
    )  # fmt: skip


def _methods(arguments: argparse.Namespace) -> list[Method]:
    """Those of the file, without those that need a model which was not named, and of these the ones asked for."""
    methods = [
        replace(one, scorer=arguments.aligned) if one.scorer == "aligned" else one
        for one in read_methods(arguments.methods_file)
        if one.scorer != "aligned" or arguments.aligned
    ]
    unknown = sorted(set(arguments.methods or ()) - {method.name for method in methods})
    if unknown:
        raise SystemExit(
            f"no method {', '.join(unknown)} in the methods file (those of an aligned scorer need --aligned)"
        )
    return [one for one in methods if not arguments.methods or one.name in arguments.methods]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="corpora, job files, database, results")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", help="by their names in the methods file; default: all of them")
    parser.add_argument("--methods-file", type=Path, default=METHODS)
    parser.add_argument("--target", default=DEFAULT_MODEL, help="the model that answers")
    parser.add_argument("--scorer", default=DEFAULT_MODEL, help="the model that scores, where a method names none")
    parser.add_argument("--aligned", metavar="MODEL", help="the scorer of the methods that want an aligned one")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--scorer-dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--documents", type=int, help="at most so many of each task")
    parser.add_argument("--max-new-tokens", type=int, help="at most so many in an answer")
    parser.add_argument("--chat", action="store_true", help="ask by the model's chat template instead of plain text")
    parser.add_argument("--plan", action="store_true", help="write corpora and job files, run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
