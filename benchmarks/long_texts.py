"""What one very long text costs beside the model: recovering an answer, and memory while 10 MB are tokenised.

    python -m benchmarks.long_texts --data DATA

``recovery``: an answer that quotes words of a compressed prompt, in runs of random length from random places, put back
into the original's words. ``prepare``: how far a process's memory rises at most while one document is made ready
(tokenised, cut into units, counted), and what it still holds of it; each kind of text in a process of its own. No model
is loaded.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Spread, facts, save, table
from benchmarks.workloads import prose
from pipeline.compression.recovering import recover

COLUMNS = ("what", "bytes", "tokens", "seconds", "lowest", "highest", "peak MB", "held MB")
CHINESE = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会"


def main() -> None:
    arguments = _parse()
    if arguments.kind:
        print(json.dumps(_prepared(KINDS[arguments.kind](arguments.data, arguments.bytes), arguments.model)))
        return
    rows = [_recovery(arguments)]
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.long_texts", "--data", str(arguments.data), "--kind", kind]
        command += ["--bytes", str(arguments.bytes), "--model", arguments.model]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append({"what": f"prepare: {kind}", **json.loads(done.stdout)})
        print(rows[-1], file=sys.stderr, flush=True)
    figures: dict[str, Any] = {"facts": facts(torch.device("cpu"), "none"), "rows": rows}
    save(arguments.json, figures)
    print(table(rows, COLUMNS))
    print(figures["facts"])


def _recovery(arguments: argparse.Namespace) -> dict[str, Any]:
    """10,000 words of an answer against a prompt of 1 MB of which every third word was kept."""
    text, draw = prose(arguments.data, 2**20), random.Random(0)
    spans, place = [], 0
    for word in text.split(" "):
        if draw.random() < 1 / 3:
            spans.append((place, place + len(word) + 1))
        place += len(word) + 1
    kept = np.minimum(np.array(spans), len(text))
    words = [text[begin:end] for begin, end in kept.tolist()]
    answer = ""
    for _ in range(arguments.answer_words // 10):
        begin = draw.randrange(len(words) - 20)
        answer += "".join(words[begin : begin + draw.randint(5, 15)]) + "indeed "
    seconds = []
    for _ in range(arguments.runs):
        begun = time.process_time()
        recover(text, kept, answer, 200)
        seconds.append(time.process_time() - begun)
    found = Spread.of(seconds)
    return {
        "what": f"recover {len(answer.split()):,} words", "bytes": len(text.encode()), "seconds": found.median,
        "lowest": found.lowest, "highest": found.highest,
    }  # fmt: skip


def _prepared(text: str, model: str) -> dict[str, Any]:
    from pipeline.compression.marking import build_marking
    from pipeline.compression.preparing import Preparing
    from pipeline.compression.prompt import Prompt, Source
    from pipeline.compression.tokens import Tokenising
    from pipeline.models import load_tokenizer
    from schemas.compress import LLMLinguaSpec
    from schemas.document import PromptParts

    spec, tokenising = LLMLinguaSpec(kind="compress", rate=0.33), Tokenising(load_tokenizer(model))
    preparing = Preparing(spec, tokenising, tokenising, build_marking(spec), same_tokenizer=True)
    preparing.prepare([Source(PromptParts(contexts=("A first text, so that all is loaded.",)))])
    before, begun = _memory("VmRSS"), time.process_time()
    (made,) = preparing.prepare([Source(PromptParts(contexts=(text,)))])
    seconds, peak, held = time.process_time() - begun, _memory("VmHWM"), _memory("VmRSS")
    assert isinstance(made, Prompt)
    return {
        "bytes": len(text.encode()), "tokens": made.original, "seconds": seconds, "peak MB": (peak - before) / 1e6,
        "held MB": (held - before) / 1e6,
    }  # fmt: skip


def _memory(name: str) -> int:
    """Bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _english(data: Path, size: int) -> str:
    return prose(data, size)


def _chinese(data: Path, size: int) -> str:
    del data
    draw = random.Random(0)
    return "".join(draw.choices(CHINESE + "，。", k=size // 3))


def _json(data: Path, size: int) -> str:
    rows = [{"id": place, "words": line.split()} for place, line in enumerate(prose(data, size).splitlines())]
    return json.dumps(rows, separators=(",", ":"))[:size]


def _letter(data: Path, size: int) -> str:
    del data
    return "a" * size


KINDS: dict[str, Callable[[Path, int], str]] = {
    "English": _english, "Chinese": _chinese, "JSON without white space": _json, "one letter": _letter,
}  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with prose in it")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer")
    parser.add_argument("--bytes", type=int, default=10_000_000, help="of a text that is tokenised")
    parser.add_argument("--answer-words", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
