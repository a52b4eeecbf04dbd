"""What distilling is worth: what a target accepts of each drafter, and at which speed it answers, before and after.

    python -m benchmarks.distillation FOLDER --layers 4 8 --documents 600 --new 64 --epochs 2
    python -m benchmarks.distillation FOLDER --target MODEL --drafters SMALL --dtype bfloat16 --documents 4000
    python -m benchmarks.distillation FOLDER --layers 2 --documents 64 --new 32 --asked 4    # minutes on a CPU

FOLDER holds gsm8k/ as JSON lines. The target answers questions of the training part; each drafter (a shallow copy of
the target, or a small model) learns from these answers as `contextmill distill` has it, and the held-out ones say what
share of its drafts is accepted. Then questions of the test part are answered one at a time with four tokens drafted at
a time, and with as many as pay: tokens a second, reading left out, over plain decoding's, which is timed anew beside
each. Answers end by themselves.

No peer runs beside it: other trainers of drafts that we know of (EAGLE, Medusa) make heads for an engine of their own,
not a model that any engine reads. What a drafter is set against is itself before, and plain decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measuring import facts, save, table
from benchmarks.quality.corpora import read
from benchmarks.quality.gsm8k import ASK
from pipeline.alignment.distilling import MODEL, Distill
from pipeline.alignment.drafts import drafting
from pipeline.generation.local import prompts_of
from pipeline.generation.prompts import Prompt, PromptEncoder
from pipeline.generation.stage import Generate
from pipeline.generation.tuning import ALL_AT_ONCE, Figures, measure
from pipeline.models import LoadedModel, ModelPool, resolve
from pipeline.models.distilled import read_figures
from pipeline.models.shorten import shorten
from pipeline.stages import Result, Run
from schemas.base import DEFAULT_MODEL
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.stage import DistillSpec, GenerateSpec

ROOM = {"batch_tokens": ALL_AT_ONCE}

KEYS = "epochs", "kl_weight", "batch_tokens"
"""Settings of the distill stage that are options here."""


def main() -> None:
    arguments = _parse()
    pool = ModelPool(arguments.device, limit=2)
    answers = GenerateSpec(
        kind="generate", dtype=arguments.dtype, max_new_tokens=arguments.new, batch_tokens=arguments.answer_tokens
    )
    learned = _answered(_questions(arguments.data, "train", arguments.documents), answers, arguments.target, pool)
    target = pool.causal_lm(arguments.target, arguments.dtype)
    asked = _prompts(_questions(arguments.data, "test", arguments.asked), target, answers)
    found: list[dict[str, Any]] = []
    begun: list[dict[str, Any]] = [{"layers": one} for one in arguments.layers]
    for beginning in [*begun, *({"drafter": one} for one in arguments.drafters)]:
        for line in _distilled(beginning, learned, answers, target, asked, arguments, pool):
            found.append(line)
            print(json.dumps(line), flush=True)
            save(arguments.json, {"facts": facts(target.device, arguments.dtype), "rows": found})
    print(table(found, list(found[0])))


def _questions(data: Path, part: str, number: int) -> list[Document]:
    """The first of them, without examples: documents of a job."""
    texts = (ASK.format(row["question"].strip()) for row in read(data / "gsm8k" / f"{part}.jsonl"))
    parts = [PromptParts("", (), text) for text in islice(texts, number)]
    return [Document(at, f"{part}-{at}", one, one.content_hash()) for at, one in enumerate(parts)]


def _answered(documents: Sequence[Document], answers: GenerateSpec, name: str, pool: ModelPool) -> list[Document]:
    """With what the target says, and the end token where it ended: what the command gathers of a job."""
    stage = Generate(answers, TargetSpec(model=name))
    outcomes = stage.run(documents, Run(pool))
    end = PromptEncoder(name, stage.load(Run(pool)).tokenizer, 2, answers).end
    rows = [(one, made.fields) for one, made in zip(documents, outcomes, strict=True) if isinstance(made, Result)]
    ends = [end if row["finish_reason"] == "stop" else "" for _, row in rows]
    return [replace(one, answer=row["generated"] + end) for (one, row), end in zip(rows, ends, strict=True)]


def _prompts(documents: Sequence[Document], target: LoadedModel, answers: GenerateSpec) -> list[Prompt]:
    asked = prompts_of(documents, target.ref.name, target, answers)
    return [one for one in asked if isinstance(one, Prompt)]


def _distilled(
    beginning: dict[str, Any], learned: Sequence[Document], answers: GenerateSpec, target: LoadedModel,
    asked: Sequence[Prompt], arguments: argparse.Namespace, pool: ModelPool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A line for the drafter before, one after, and one after with as many drafts as pay."""
    given = {name: getattr(arguments, name) for name in KEYS}
    raw = {"kind": "distill", "dtype": arguments.train_dtype, **beginning, **given}
    spec = DistillSpec.model_validate(raw).model_copy(update={"answers": answers})
    stage = Distill(spec, TargetSpec(model=arguments.target))
    with tempfile.TemporaryDirectory() as folder, _begun(stage) as before:
        begun = time.perf_counter()
        stage.run(learned, Run(pool, folder=folder))
        seconds, after = time.perf_counter() - begun, f"{folder}/{MODEL}"
        figures = read_figures(Path(after))
        for when, name, pays in (("before", before, False), ("after", after, False), ("after, as pays", after, True)):
            drafter = pool.own_copy(name, arguments.dtype)
            drafts = drafting(answers, drafter.ref.name)
            changes = {"draft_tokens": "auto", "draft_rounds": ()} if pays else {}
            alone, planned = answers.model_copy(update=ROOM), drafts.model_copy(update={**ROOM, **changes})
            plain = measure(target, alone, [], asked, 1, arguments.runs, pool)
            found = measure(target, planned, [drafter], asked, 1, arguments.runs, pool)
            place = int(when != "before")
            held = (figures.before, figures.after)[place]
            yield {
                "drafter": stage.beginning, "when": when, "learned from": len(learned) - figures.answers,
                "trained in s": seconds if place else None, "nats": figures.nats[place],
                "agreement": figures.agreement[place], "held out": figures.answered,
                "held out, accepted": held.accepted, "held out, tokens a pass": held.tokens_per_pass,
                **_speed(found, plain),
            }  # fmt: skip


@contextlib.contextmanager
def _begun(stage: Distill) -> Iterator[str]:
    """The name of what a drafter is before."""
    if stage.spec.layers is None:
        yield stage.source
        return
    with tempfile.TemporaryDirectory() as folder:
        shorten(resolve(stage.source).folder, Path(folder) / "short", stage.spec.layers)
        yield f"{folder}/short"


def _speed(found: Figures, plain: Figures) -> dict[str, Any]:
    same = sum(mine == its for mine, its in zip(found.answers, plain.answers, strict=True))
    return {
        "tokens/s": found.tokens_per_second, "plain tokens/s": plain.tokens_per_second, "times": found.times(plain),
        "tokens a pass": found.tokens_per_pass, "accepted": found.accepted,
        "same answers": f"{same} of {len(found.answers)}",
    }  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--target", default=DEFAULT_MODEL)
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="shallow copies of the target")
    parser.add_argument("--drafters", nargs="*", default=[], help="small models of the target's vocabulary")
    parser.add_argument("--documents", type=int, default=600, help="questions whose answers are learned from")
    parser.add_argument("--asked", type=int, default=16, help="test questions that are answered at every speed")
    parser.add_argument("--new", type=int, default=64, help="most new tokens of an answer")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--kl-weight", type=float, default=0.0)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of a pass of the training")
    parser.add_argument("--answer-tokens", type=int, default=16384, help="batch_tokens of the answers")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--train-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.layers + arguments.drafters:
        parser.error("--layers or --drafters: what is to be distilled?")
    return arguments


if __name__ == "__main__":
    main()
