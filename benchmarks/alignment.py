"""What alignment is worth: likelihood of held-out answers, and GSM8K behind prompts that each scorer compressed.

    python -m benchmarks.alignment FOLDER --out runs/alignment --target MODEL --dtype bfloat16 --batch-tokens 65536
    python -m benchmarks.alignment FOLDER --out runs/try --questions 24 --documents 8 --max-new-tokens 64

FOLDER holds gsm8k/ as JSON lines (train, test and the hardest worked examples). The target answers questions of GSM8K's
training part, each behind one worked example; `contextmill align` teaches the scorer what it wrote; then the test
prompts of ``benchmarks.quality`` are compressed once by the scorer as it was and once with its adapter, at equal rates,
and answered. The training part has none of the test's questions. The same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads

from benchmarks.quality.corpora import Row, drawn, read, write
from benchmarks.quality.gsm8k import ASK, hardest
from benchmarks.quality.matrix import Method, Planned, Setup, job, toml
from benchmarks.quality.running import database, runner
from benchmarks.quality.tables import Done, report
from benchmarks.quality.tasks import TASKS
from pipeline.accounting.wording import points, span
from pipeline.evaluation.comparing import compare
from schemas.base import DEFAULT_MODEL

TASK = "gsm8k"
METHODS = "unaligned", "aligned"


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Held-out answers under the scorer: nats a token before and after, each with its perplexity.

    ``improved`` is the share of held-out answers that became more likely.
    """

    answers: int
    tokens: int
    nll_before: float
    nll_after: float
    perplexity_before: float
    perplexity_after: float
    improved: float


def main() -> None:
    arguments = _parse()
    adapter, found = align(arguments)
    print(json.dumps({"adapter": adapter, **asdict(found)}, indent=1), flush=True)
    results: Path = arguments.out / arguments.name  # several scorers may share the answers that lie in --out
    results.mkdir(exist_ok=True)
    (results / "likelihood.json").write_text(json.dumps(asdict(found), indent=1))
    if arguments.documents == 0:
        return
    setup = _setup(arguments)
    engine = database(arguments.out)
    done: list[Done] = []
    with runner(engine, arguments.out, 1) as worker:
        for planned in plan(setup, arguments.scorer, adapter, arguments.ratios):
            made = worker.begin(planned.spec)
            if not worker.end(made, planned.spec.name):
                raise SystemExit(1)
            done.append((planned, made))
    print(report(engine, results, TASK, done))
    for line in differences(engine, *done[-2:]):
        print(line)


def align(arguments: argparse.Namespace) -> tuple[str, Likelihood]:
    """Run `contextmill align`; the scorer's new name, and what it is worth on held-out answers."""
    out: Path = arguments.out
    corpus = out / "corpora" / f"training-{arguments.questions}.jsonl"
    write(corpus, training_prompts(arguments.data, arguments.questions))
    path = out / "align.toml"
    path.write_text(_align_file(arguments, corpus), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline.cli", "align", str(path), "--json"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode not in (0, 3):
        raise SystemExit(f"contextmill align ended with {ended.returncode}")
    said = json.loads(ended.stdout)
    return said["adapter"]["model"], likelihood(Path(said["jobs"][-1]["places"]["data"]))


def training_prompts(data: Path, number: int) -> list[Row]:
    """Questions drawn from the training part, each behind the first of the hardest worked examples."""
    rows = list(read(data / "gsm8k" / "train.jsonl"))
    chosen = drawn("alignment").sample(range(len(rows)), number)
    shown = hardest(data)[:1]
    asked = ((place, ASK.format(rows[place]["question"].strip())) for place in chosen)
    return [Row(id=f"train-{place}", instruction="", contexts=shown, question=ask, answer="") for place, ask in asked]


def likelihood(data: Path) -> Likelihood:
    """From the rows of the align job."""
    table = pads.dataset(data).to_table(["split", "tokens_answer", "nll_before", "nll_after"])
    rows = [row for row in table.to_pylist() if row["split"] == "held_out"]
    tokens, before, after = (
        np.array([row[name] for row in rows], dtype=float) for name in ("tokens_answer", "nll_before", "nll_after")
    )
    was, now = (float(np.average(nats, weights=tokens)) for nats in (before, after))
    improved = float(np.mean(after < before))
    return Likelihood(len(rows), int(tokens.sum()), was, now, float(np.exp(was)), float(np.exp(now)), improved)


def plan(setup: Setup, scorer: str, adapter: str, ratios: list[float]) -> list[Planned]:
    """The full prompts, then those that each scorer compresses."""
    full = TASKS[TASK].full
    rates = tuple(round(1 / ratio, 6) for ratio in ratios)
    planned = [Planned(TASK, full, None, (), job(setup, TASK, full, None, ()))]
    for name, model in zip(METHODS, (scorer, adapter), strict=True):
        method = Method(name, {"method": "llmlingua"}, scorer=model)
        planned.append(Planned(TASK, full, method, rates, job(setup, TASK, full, method, rates)))
    return planned


def differences(engine: Any, unaligned: Done, aligned: Done) -> list[str]:
    """Aligned minus unaligned, in points over the same documents, rate by rate."""
    lines = []
    for rate in aligned[0].rates:
        found = compare(engine, [f"{aligned[1]}@{rate:g}"], baseline=f"{unaligned[1]}@{rate:g}")
        ours = next(side for side in found.sides if not side.baseline)
        its = ours.metrics[found.metrics[0]]
        gap = f"{points(its.difference)} ({span(its.difference_low, its.difference_high)})"
        lines.append(f"{1 / rate:.3g}x: aligned minus unaligned {gap} points, {its.common} documents")
    return lines


def _align_file(arguments: argparse.Namespace, corpus: Path) -> str:
    shared = {"device": arguments.device, "dtype": arguments.dtype, "batch_tokens": arguments.batch_tokens}
    taught = {"teacher": arguments.target, "kl_weight": arguments.kl_weight} if arguments.kl_weight else {}
    task = TASKS[TASK]
    most = min(arguments.max_new_tokens or task.max_new_tokens, task.max_new_tokens)
    learning = {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate, "held_out": arguments.held_out}
    answers = {"chat": False, "max_new_tokens": most, "stop": list(task.stop), **shared}
    file = {
        "name": arguments.name,
        "input": {"path": [str(corpus)]},
        "output": {"path": str(arguments.out)},
        "align": {"model": arguments.scorer, **learning, **taught, **shared},
        "stages": [{"model": arguments.target, "answers": answers}],
    }
    return toml(file).replace("[[stages]]", "[[targets]]")  # the one difference between the two kinds of file


def _setup(arguments: argparse.Namespace) -> Setup:
    shared = {"device": arguments.device, "batch_tokens": arguments.batch_tokens}
    return Setup(
        data=arguments.data, out=arguments.out, target=arguments.target, scorer=arguments.scorer,
        documents=arguments.documents, max_new_tokens=arguments.max_new_tokens,
        generate={**shared, "dtype": arguments.dtype}, compress={**shared, "dtype": arguments.scorer_dtype},
    )  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="corpora, job files, database, results")
    parser.add_argument("--name", default="gsm8k-aligned", help="of the adapter")
    parser.add_argument("--target", default=DEFAULT_MODEL, help="the model that answers")
    parser.add_argument("--scorer", default=DEFAULT_MODEL)
    parser.add_argument("--questions", type=int, default=2000, help="of the training part, to be answered and learned")
    parser.add_argument("--documents", type=int, help="of the test part, at most; 0: likelihood alone")
    parser.add_argument("--ratios", type=float, nargs="+", default=[5, 14, 20])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--kl-weight", type=float, default=0.0, help="above 0 the target is the teacher, too")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--scorer-dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--max-new-tokens", type=int, help="at most so many in an answer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
