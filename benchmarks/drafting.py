"""Drafting against plain decoding and against transformers' own ways, the same prompts in the same run.

    python -m benchmarks.drafting FOLDER --target MODEL --drafters MODEL --dtype bfloat16 --rows 1 8 64 --peers
    python -m benchmarks.drafting FOLDER --target MODEL --tasks summaries --rows 1 --documents 8 --rates 0.5 0.33 0.2
    python -m benchmarks.drafting FOLDER --target MODEL --drafters MODEL --own '{"draft_rounds": [2], "draft_tail": 4}'

FOLDER holds gsm8k/, mmlu/, pwc_like/, qmsum/ and code/ as JSON lines. For every plan that ``contextmill tune-drafting``
measures, and ``--own`` ones: tokens a second, reading of the prompts left out (the time of one token is subtracted),
times plain decoding; tokens for each pass of the target; the share of drafts that were accepted; standardised walltime
improvement (SWI: passes times parameters, the paper's cost) and the share of answers' tokens before the first that
differs from plain decoding. ``--rates`` shortens the contexts by BM25 to each of them, and drafts with and without the
original text. Answers end by themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import facts, save, table, timed
from benchmarks.plans import add_plans, chosen, models
from benchmarks.quality import gsm8k, meetings
from benchmarks.quality.corpora import read
from pipeline.generation.ending import end_tokens
from pipeline.generation.generated import no_defaults
from pipeline.generation.prompts import Prompt
from pipeline.generation.tuning import ALL_AT_ONCE, PLAIN, measure
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Result, Run, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import GenerateSpec


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt: what may be shortened of it, and what may not."""

    before: str
    contexts: list[str]
    after: str

    @property
    def parts(self) -> PromptParts:
        """As a document has it."""
        return PromptParts(self.before, tuple(self.contexts), self.after)


def _gsm8k(data: Path) -> Iterator[Asked]:
    for row in gsm8k.few_shot(data, 4):
        yield Asked(row["instruction"], row["contexts"], row["question"])


def _mmlu(data: Path) -> Iterator[Asked]:
    for row in read(data / "mmlu" / "test_2000.jsonl"):
        choices = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        yield Asked("", [], f"Question: {row['question']}\n{choices}\nExplain your choice step by step.\nAnswer:")


def _reading(data: Path) -> Iterator[Asked]:
    for row in read(data / "pwc_like" / "test.jsonl"):
        yield Asked("", row["input"].split("\n"), f"Question: {row['prompt']}\nAnswer, quoting the text:")


def _summaries(data: Path) -> Iterator[Asked]:
    for row in meetings.summaries(data):
        yield Asked(row["instruction"], row["contexts"][:6], row["question"])


def _code(data: Path) -> Iterator[Asked]:
    for row in read(data / "code" / "humaneval.jsonl"):
        yield Asked("", [], row["prompt"])


def _edits(data: Path) -> Iterator[Asked]:
    for row in read(data / "code" / "humaneval.jsonl"):
        program = row["prompt"] + row["canonical_solution"]
        asked = f"```\n\nThe same program, in which `{row['entry_point']}` is called `solve`:\n\n```python\n"
        yield Asked("", [], f"```python\n{program}{asked}")


TASKS: dict[str, Callable[[Path], Iterator[Asked]]] = {
    "gsm8k": _gsm8k, "mmlu": _mmlu, "reading": _reading, "summaries": _summaries, "code": _code,
    "edits": _edits,
}  # fmt: skip


def main() -> None:
    arguments = _parse()
    pool = ModelPool(arguments.device)
    target, drafters = models(pool, arguments.target, arguments.drafters, arguments.dtype)
    found: list[dict[str, Any]] = []
    for task in arguments.tasks:
        asked = list(islice(TASKS[task](arguments.data), arguments.documents))
        for rate, prompts in _shortened(asked, target, arguments, pool):
            for rows in arguments.rows:
                for line in _lines(target, drafters, prompts, rows, rate is not None, arguments, pool):
                    found.append({"task": task, "rate": rate or "", "rows": rows, **line})
                    print(json.dumps(found[-1]), flush=True)
                save(arguments.json, {"facts": facts(target.device, arguments.dtype), "rows": found})
    print(table(found, list(found[0])))


def _shortened(
    asked: Sequence[Asked], target: LoadedModel, arguments: argparse.Namespace, pool: ModelPool
) -> Iterator[tuple[float | None, list[Prompt]]]:
    """The prompts as they are, and at every rate: shorter, with the original to copy from."""
    encode = target.tokenizer
    limit = arguments.new

    def prompt(text: str, original: str = "") -> Prompt:
        copied = encode(original, add_special_tokens=False)["input_ids"] if original else []
        return Prompt(encode(text)["input_ids"], limit, copied=copied)

    if not arguments.rates:
        yield None, [prompt(one.parts.render()) for one in asked]
    documents = [Document(at, str(at), one.parts, one.parts.content_hash()) for at, one in enumerate(asked)]
    for rate in arguments.rates:
        stage = {"kind": "compress", "method": "bm25", "rate": rate, "budget": "contexts"}
        raw = {"input": {"path": "-"}, "target": {"model": arguments.target}, "stages": [stage]}
        outcomes = build(JobSpec.model_validate(raw), 0).run(documents, Run(pool))
        yield (
            rate,
            [
                prompt(outcome.fields["compressed"], document.parts.render())
                for outcome, document in zip(outcomes, documents, strict=True)
                if isinstance(outcome, Result)
            ],
        )


def _lines(
    target: LoadedModel, drafters: Sequence[LoadedModel], prompts: Sequence[Prompt], rows: int, original: bool,
    arguments: argparse.Namespace, pool: ModelPool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    plain: dict[str, Any] = {}
    for name, spec in _specs(arguments).items():
        some = drafters if spec.drafters else []
        for copies in (True, False) if original and name != PLAIN else (True,):
            shown = prompts if copies else [replace(one, copied=[]) for one in prompts]
            line = _measured(target, some, shown, rows, spec, arguments, pool)
            plain = plain or dict(line)
            times, equal = _times(line, plain), _equal(line.pop("answers"), plain["answers"])
            yield {"plan": name if copies else f"{name}, not from the original", **line, "times": times, "equal": equal}
    if arguments.peers and rows == 1:
        for name, line in _peers(target, drafters, prompts, arguments):
            yield {"plan": name, **line, "times": _times(line, plain)}


def _specs(arguments: argparse.Namespace) -> dict[str, GenerateSpec]:
    """Plain decoding first, which all are set against."""
    plain = GenerateSpec(kind="generate", dtype=arguments.dtype, batch_tokens=ALL_AT_ONCE)
    return {PLAIN: plain} | chosen(arguments, arguments.dtype)


def _measured(
    target: LoadedModel, drafters: Sequence[LoadedModel], prompts: Sequence[Prompt], rows: int, spec: GenerateSpec,
    arguments: argparse.Namespace, pool: ModelPool,
) -> dict[str, Any]:  # fmt: skip
    found = measure(target, spec, drafters, prompts, rows, arguments.runs, pool)
    return {
        "tokens/s": found.tokens_per_second,
        "s": found.seconds,
        "read in s": found.read_seconds,
        "tokens": found.tokens,
        "tokens a pass": found.tokens_per_pass,
        "accepted": found.accepted or 0.0,
        "SWI": _swi(target, drafters, found.tokens, found.passes, spec),
        "answers": found.answers,
    }


def _times(line: dict[str, Any], plain: dict[str, Any]) -> float | None:
    return line["tokens/s"] / plain["tokens/s"] if line["tokens/s"] and plain["tokens/s"] else None


def _swi(
    target: LoadedModel, drafters: Sequence[LoadedModel], tokens: int, passes: int, spec: GenerateSpec
) -> float | None:
    """Standardised walltime improvement by parameters: what one pass a token costs over what was passed through. Not
    known where drafters come and go."""
    if spec.plan.adaptive and drafters:
        return None
    unit = float(target.parameters)
    each = unit + sum(calls * one.parameters for calls, one in zip(spec.plan.passes, drafters, strict=True))
    return tokens * unit / (passes * each)


def _equal(answers: Sequence[list[int]], plain: Sequence[list[int]]) -> float:
    """The share of the plain answers' tokens before the first that differs."""
    same = 0
    for one, other in zip(answers, plain, strict=True):
        size = min(len(one), len(other))
        same += int(np.logical_and.accumulate(np.array(one[:size]) == np.array(other[:size])).sum())
    return same / max(1, sum(map(len, plain)))


def _peers(
    target: LoadedModel, drafters: Sequence[LoadedModel], prompts: Sequence[Prompt], arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """transformers, one prompt at a time, which is all that its drafting takes."""
    ends = {"eos_token_id": sorted(end_tokens(target.model, target.tokenizer, ()))}
    ways: dict[str, dict[str, Any]] = {
        "transformers": ends,
        "transformers, prompt lookup": {**ends, "prompt_lookup_num_tokens": 10},
    }
    if own := [one for one in drafters if not one.ref.name.startswith("layers:")]:
        ways["transformers, assisted"] = {**ends, "assistant_model": own[0].model}
    model: Any = target.model

    def work(new: int, options: dict[str, Any]) -> int:
        made = 0
        for prompt in prompts:
            ids = torch.tensor([prompt.ids], device=target.device)
            with no_defaults(model), torch.inference_mode():
                mask = torch.ones_like(ids)
                out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **options)
            made += out.shape[1] - ids.shape[1]
        return made

    for name, options in ways.items():
        work(4, options)
        _, read_in = timed(lambda: work(1, {}), arguments.runs, target.device)
        tokens, whole = timed(lambda: work(arguments.new, options), arguments.runs, target.device)  # noqa: B023
        rate = (tokens - len(prompts)) / max(1e-9, whole.median - read_in.median)
        yield name, {"tokens/s": rate, "s": whole.median, "read in s": read_in.median, "tokens": tokens}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--target", required=True)
    add_plans(parser)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--rates", type=float, nargs="*", default=[])
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="transformers' own ways as well, at one row")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
