"""Our decoding against transformers' ``generate``, greedy, in the same run: speed and equal tokens.

    python -m benchmarks.decoding_speed --model FOLDER --peers              # a GPU, half precision
    python -m benchmarks.decoding_speed --model FOLDER --rows 1 4 --dtype float32 --device cpu     # padded passes

``FOLDER`` has config.json and the tokenizer's files; without any weights they are random. No answer ends
by itself: all have ``--new`` tokens. ``equal`` is the share of tokens before the first that differs. ``--peers`` adds
transformers' compiled static cache (``static``) and its continuous batching (``continuous``: ``generate_batch``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.decoding_peers import PEERS, Decode
from benchmarks.measuring import facts, save, table, timed
from benchmarks.random_weights import with_weights
from pipeline.generation import local
from pipeline.generation.decoding import passes_for
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Run
from schemas.stage import GenerateSpec


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        pool = ModelPool(arguments.device)
        folder = with_weights(arguments.model, Path(temporary))
        loaded = pool.causal_lm(str(folder), arguments.dtype)
        begun = time.perf_counter()
        passes = passes_for(loaded)
        if passes is None:
            raise SystemExit("this model is decoded by generate: there is nothing to compare")
        print(f"{passes.__name__}, made ready in {time.perf_counter() - begun:.1f} s", flush=True)
        names = [] if arguments.peers is None else arguments.peers or list(PEERS)
        peers = {name: PEERS[name](folder, arguments.dtype, loaded.device) for name in names}
        found: list[dict[str, Any]] = []
        for rows in arguments.rows:
            found.append(_compare(pool, loaded, peers, arguments, rows))
            print(table(found, list(found[0])), flush=True)
            save(
                arguments.json,
                {"facts": facts(loaded.device, arguments.dtype), "passes": passes.__name__, "rows": found},
            )


def _compare(
    pool: ModelPool, loaded: LoadedModel, peers: dict[str, Decode], arguments: argparse.Namespace, rows: int
) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    spread = random.integers(arguments.tokens * 4 // 5, arguments.tokens * 6 // 5 + 1, rows)
    lengths = [arguments.tokens] * rows if arguments.even else spread.tolist()
    ids = [random.integers(5, loaded.model.config.vocab_size, length).tolist() for length in lengths]
    room = rows * (max(lengths) + arguments.new)  # one batch, padded or not
    generator = LocalGenerator(loaded, GenerateSpec(kind="generate", batch_tokens=room), Run(pool))
    figures: dict[str, Any] = {"rows": rows, "tokens": sum(lengths)}
    answers = []
    for name, passes in (("generate", None), ("ours", passes_for(loaded))):
        with (
            mock.patch.object(local, "passes_for", lambda loaded, passes=passes: passes),
            mock.patch.object(local, "end_tokens", lambda *some: frozenset()),
        ):
            seconds = {}
            for new in (1, arguments.new):
                prompts = [Prompt(one, new) for one in ids]
                generator.generate(prompts)
                found, seconds[new] = timed(lambda: generator.generate(prompts), arguments.runs, loaded.device)  # noqa: B023
        answers.append([one.tokens for one in found])
        read, whole = seconds[1].median, seconds[arguments.new].median
        figures[f"{name} s"], figures[f"{name} read s"] = whole, read
        figures[f"{name} tokens/s"] = rows * (arguments.new - 1) / max(1e-9, whole - read)
    figures["times"] = figures["ours tokens/s"] / figures["generate tokens/s"]
    figures["equal"] = _equal(*answers)
    for name, decode in peers.items():
        figures[f"{name} tokens/s"] = _of_peer(decode, ids, arguments, loaded.device)
    return figures


def _of_peer(decode: Decode, ids: list[list[int]], arguments: argparse.Namespace, device: torch.device) -> float | str:
    """Tokens a second, or why there are none: not every way takes every model."""
    seconds = {}
    try:
        for new in (arguments.new, 1):  # the larger first: room is made for it
            for _ in range(2):  # the second time compiles for other lengths
                decode(ids, new)
            _, seconds[new] = timed(lambda: decode(ids, new), arguments.runs, device)  # noqa: B023
    except Exception as error:  # noqa: BLE001
        return " ".join(str(error).split())[:80] or type(error).__name__
    return float(len(ids) * (arguments.new - 1) / max(1e-9, seconds[arguments.new].median - seconds[1].median))


def _equal(one: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    same = [np.array(a) == np.array(b) for a, b in zip(one, other, strict=True)]
    return float(np.mean([np.logical_and.accumulate(row) for row in same]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--tokens", type=int, default=512, help="mean length of the prompts, a fifth more or less")
    parser.add_argument("--even", action="store_true", help="prompts of equal length: generate has no padding then")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--peers", nargs="*", choices=list(PEERS), metavar="NAME", help=f"of {', '.join(PEERS)}; all if none is named"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
