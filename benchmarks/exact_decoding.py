"""Whether our decoding says what transformers' greedy `generate` says in float32, token for token, however it drafts.

    python -m benchmarks.exact_decoding make FOLDER FILE --device cuda    # 500 prompts, 128 new tokens each
    python -m benchmarks.exact_decoding check FILE --rows 1 33 --plans plain "copies 7"

FOLDER holds gsm8k/, mmlu/, pwc_like/, code/ and prose/ as JSON lines; FILE (Parquet) has token ids of prompts and
answers. A difference is a tie where, at the first token that differs, transformers' two highest logits in float64 are
nearer than 1e-3: sums of another order then decide. Exits 1 if anything else differs. No answer ends by itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.plans import add_plans, chosen, models
from benchmarks.quality.corpora import read
from pipeline.generation import local
from pipeline.generation.generated import no_defaults
from pipeline.generation.prompts import Prompt
from pipeline.generation.tuning import decoding
from pipeline.models import LoadedModel, ModelPool
from schemas.base import DEFAULT_MODEL
from schemas.stage import GenerateSpec

MOST = 160
"""Tokens of a prompt, at most: longer texts are cut."""

TIE = 1e-3
AT_ONCE = 50


def texts(data: Path) -> Iterator[str]:
    """A prompt of each kind in turn."""
    kinds = [
        (f"Question: {row['question']}\nAnswer:" for row in read(data / "gsm8k" / "test.jsonl")),
        (f"{row['question']}\nA. {row['choices'][0]}\nB. {row['choices'][1]}\nExplain:" for row in _mmlu(data)),
        (f"{row['input']}\n\n{row['prompt']}" for row in read(data / "pwc_like" / "test.jsonl")),
        (row["prompt"] for row in read(data / "code" / "humaneval.jsonl")),
        (path.read_text(encoding="utf-8")[2000:3000] for path in sorted((data / "prose").rglob("*.txt"))),
    ]
    while True:
        found = [text for text in (next(kind, None) for kind in kinds) if text]
        if not found:
            return
        yield from found


def _mmlu(data: Path) -> Iterator[dict[str, Any]]:
    yield from read(data / "mmlu" / "test_2000.jsonl")


@torch.inference_mode()
def make(loaded: LoadedModel, prompts: Sequence[list[int]], new: int) -> Iterator[list[int]]:
    """Answers of transformers' ``generate``, greedy, in batches of prompts of like length."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, list[int]] = {}
    model: Any = loaded.model
    for begin in range(0, len(order), AT_ONCE):
        places = order[begin : begin + AT_ONCE]
        width = max(len(prompts[place]) for place in places)
        ids = torch.tensor([[0] * (width - len(prompts[place])) + prompts[place] for place in places])
        mask = torch.tensor([[0] * (width - len(prompts[place])) + [1] * len(prompts[place]) for place in places])
        with no_defaults(model):
            out = model.generate(
                ids.to(loaded.device), attention_mask=mask.to(loaded.device), max_new_tokens=new, do_sample=False,
                eos_token_id=-1, pad_token_id=0,
            )  # fmt: skip
        found.update(zip(places, out[:, width:].tolist(), strict=True))
        print(f"{len(found)} of {len(prompts)} answers", flush=True)
    yield from (found[place] for place in range(len(prompts)))


def ours(
    loaded: LoadedModel, drafters: Sequence[LoadedModel], prompts: Sequence[list[int]], new: int, rows: int,
    spec: GenerateSpec, pool: ModelPool,
) -> list[list[int]]:  # fmt: skip
    """The same by our decoding, ``rows`` at once."""
    some = drafters if spec.drafters else []
    with mock.patch.object(local, "end_tokens", lambda *some: frozenset()):
        work = decoding(loaded, spec, some, [Prompt(ids, new) for ids in prompts], rows, pool)
        return [one.tokens for one in work(None)]


def margins(loaded: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """How far transformers' two highest logits are apart in float64, after each text and what both said of it."""
    model: Any = loaded.model.double()
    found = []
    with torch.inference_mode():
        for text, said in pairs:
            logits = model(input_ids=torch.tensor([text + said], device=loaded.device)).logits[0, -1]
            best = logits.topk(2).values
            found.append(float(best[0] - best[1]))
    model.float()
    return found


def main() -> None:
    arguments = _parse()
    pool = ModelPool(arguments.device)
    loaded, drafters = models(pool, arguments.model, arguments.drafters, "float32")
    if arguments.what == "make":
        encoded = (loaded.tokenizer(text)["input_ids"][:MOST] for text in texts(arguments.data))
        prompts = list(islice((ids for ids in encoded if ids), arguments.documents or 500))
        answers = list(make(loaded, prompts, arguments.new))
        kind = pa.list_(pa.int32())
        columns = {"prompt": pa.array(prompts, kind), "answer": pa.array(answers, kind)}
        pq.write_table(pa.table(columns), arguments.file, compression="zstd", compression_level=19)
        return
    rows = pq.read_table(arguments.file).to_pylist()[: arguments.documents]
    prompts, expected = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    wrong = 0
    for plan, spec in chosen(arguments).items():
        for at_once in arguments.rows:
            begun = time.perf_counter()
            found = ours(loaded, drafters, prompts, len(expected[0]), at_once, spec, pool)
            seconds = time.perf_counter() - begun
            wrong += _report(f"{plan}, {at_once} at once", loaded, prompts, expected, found, seconds)
    raise SystemExit(1 if wrong else 0)


def _report(
    name: str, loaded: LoadedModel, prompts: Sequence[list[int]], expected: Sequence[list[int]],
    found: Sequence[list[int]], seconds: float,
) -> int:  # fmt: skip
    """Prints what is equal and how near the rest is; how many are neither equal nor ties."""
    apart = []
    for prompt, right, mine in zip(prompts, expected, found, strict=True):
        if right != mine:
            place = next((at for at, both in enumerate(zip(right, mine, strict=False)) if both[0] != both[1]), 0)
            apart.append((prompt, right[:place]))
    near = margins(loaded, apart) if apart else []
    ties = sum(margin < TIE for margin in near)
    distinct = len({token for one in found for token in one})
    widest = f" (two logits up to {max(near):.1g} apart)" if near else ""
    print(
        f"{name}: {len(found) - len(apart)} of {len(found)} answers equal, {ties} ties{widest}, {len(apart) - ties} "
        f"differ; {distinct} distinct tokens; {seconds:.0f} s",
        flush=True,
    )
    return len(apart) - ties


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    making, checking = kinds.add_parser("make"), kinds.add_parser("check")
    making.add_argument("data", type=Path, metavar="FOLDER")
    making.add_argument("--new", type=int, default=128, help="tokens of an answer")
    for one in (making, checking):
        one.add_argument("file", type=Path, metavar="FILE")
        one.add_argument("--model", default=DEFAULT_MODEL)
        one.add_argument("--device", default="auto")
        one.add_argument("--documents", type=int, help="at most so many")
        one.set_defaults(drafters=[])
    add_plans(checking, default=["plain"])
    checking.add_argument("--rows", type=int, nargs="+", default=[33], help="prompts at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
