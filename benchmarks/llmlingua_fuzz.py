"""Random prompts and options through llmlingua 0.2.2 and through ours, over a small random model, on the CPU.

    python -m benchmarks.llmlingua_fuzz --groups 50 --seed 1
    python -m benchmarks.llmlingua_fuzz --groups 50 --window 192        # documents beyond the model's window
    python -m benchmarks.llmlingua_fuzz --groups 12 --write cases.jsonl # what the library said, for a test

The library runs in a process and packages of its own (``benchmarks.peers``). Counted are cases on which both agree,
cases on which the library raises and ours says so, and the rest, which is printed. Exit status 1 if there is a rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.parity.random_cases import Random
from benchmarks.parity.random_model import save
from benchmarks.peers.environment import Environment, build
from benchmarks.peers.model import convert
from pipeline.compression.reference.reference import Reference, ReferenceResult
from pipeline.compression.scoring import Scorer
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Refusal
from schemas.document import PromptParts
from schemas.reference import ReferenceOptions

Row = dict[str, Any]


def main() -> None:
    arguments = _parse()
    rnd = Random(arguments.seed)
    name = f"{arguments.window}-{arguments.seed}"
    groups = [rnd.group(rnd.randint(1, 5), f"{name}-{number}") for number in range(arguments.groups)]
    peer = Environment(arguments.peer) if arguments.peer else build()
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(Path(temporary) / "ours", arguments.window, arguments.tokenizer)
        said = answers(peer, convert(folder, Path(temporary) / "theirs"), [case for group in groups for case in group])
        loaded = ModelPool("cpu").causal_lm(str(folder))
    counts = Counter[str]()
    for group in groups:
        for case, ours in zip(group, compress(loaded, group), strict=True):
            counts[_verdict(case, said[case["id"]], ours)] += 1
    if arguments.write:
        arguments.write.write_text("".join(_line(case, said, arguments.window) for group in groups for case in group))
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    raise SystemExit(int("differ" in counts))


def answers(peer: Environment, model: Path, cases: list[Row]) -> dict[str, Row]:
    """What the library says, by case."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    command = peer.command("--model", str(model), "--threads", "1")
    run = subprocess.run(command, input=lines, stdout=subprocess.PIPE, env=peer.variables(), text=True, check=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {row["id"]: row for row in rows if "id" in row}


def compress(loaded: LoadedModel, group: list[Row]) -> list[ReferenceResult | Refusal]:
    """Ours, all cases of equal options together."""
    options = dict(group[0]["kwargs"], structured=group[0]["function"] == "structured_compress_prompt")
    engine = Reference(Scorer(loaded, 4096), loaded.tokenizer, ReferenceOptions.model_validate(options))
    return engine.compress([PromptParts(row["instruction"], tuple(row["context"]), row["question"]) for row in group])


def _verdict(case: Row, said: Row, ours: ReferenceResult | Refusal) -> str:
    crashed = isinstance(ours, Refusal) or ours.crashed is not None
    if "error" in said and crashed:
        return "raise there and are told so here"
    if "error" not in said and isinstance(ours, ReferenceResult):
        text = json.loads(ours.text) if case["function"] == "compress_json" else ours.text
        if text == said["compressed_prompt"]:
            return "agree"
    print(json.dumps({**case, "library": said.get("compressed_prompt", said.get("error")), "ours": repr(ours)}))
    return "differ"


def _line(case: Row, said: dict[str, Row], window: int) -> str:
    """A case in the format of ``benchmarks.llmlingua_parity``."""
    answer = said[case["id"]]
    kwargs = {**case["kwargs"], **({"structured": True} if case["function"].startswith("structured") else {})}
    kept = {key: value for key, value in case.items() if key not in ("function", "kwargs")}
    expected = {key: answer[key] for key in ("compressed_prompt", "error") if key in answer}
    row = {**kept, "family": case["function"], "window": window, "kwargs": kwargs, "expected": expected}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=20, help="groups of one to five cases of equal options")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=int, default=2048, help="the model's, in tokens")
    parser.add_argument("--tokenizer", default="bytes", choices=["bytes", "llama"], help="llama: like Llama 2's")
    parser.add_argument("--peer", type=Path, help="the library's environment; default: in the cache, made if need be")
    parser.add_argument("--write", type=Path, help="the cases with the library's outputs, as JSON lines")
    return parser.parse_args()


if __name__ == "__main__":
    main()
