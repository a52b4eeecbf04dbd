"""What the five kernels of a layer take in a step of decoding, beside the reading of what they read.

    python -m benchmarks.layer_kernels --model FOLDER --tokens 1 8 16        # a GPU; FOLDER has config.json

Each kernel alone, one after the other over as much as no cache holds, weights (or keys and values) of its own each
time, as a CUDA graph. Microseconds, the median of five; ``floor``: the same bytes at ``--bandwidth``. Attention is of
one row behind ``--stored`` columns. The head is torch's.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import facts, save, table
from pipeline.generation.timing import timed
from pipeline.passes.fused import MOST

REPEATED = 30
EACH = 2  # bytes of a number
UNCACHED = 2**28
"""Bytes of which the first are in no cache any more when the last are read."""


def main() -> None:
    from transformers import AutoConfig

    arguments = _parse()
    config = AutoConfig.from_pretrained(arguments.model)
    found = []
    for tokens in arguments.tokens:
        for name, (run, times, size) in _kernels(config, tokens, arguments.stored).items():
            floor = size / arguments.bandwidth * 1e6
            line = {"kernel": name, "tokens": tokens, "us": _seconds(run) / times * 1e6, "floor us": floor}
            found.append({**line, "times": line["us"] / floor})
    print(table(found, list(found[0])))
    save(arguments.json, {"facts": facts(torch.device("cuda"), "bfloat16"), "rows": found})


def _kernels(config: Any, tokens: int, stored: int) -> dict[str, tuple[Callable[[], Any], int, int]]:
    """By name: what is run, how often it does its work, and bytes that it reads each time."""
    from pipeline.passes import few, products

    d, inner, heads, key_heads = (
        config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads
    )  # fmt: skip
    size = getattr(config, "head_dim", None) or d // heads
    made = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        every: dict[str, Any] = {"generator": made, "device": "cuda", "dtype": torch.bfloat16}
        return 0.02 * torch.randn(shape, **every)

    def many(*shape: int) -> list[torch.Tensor]:
        return [drawn(*shape) for _ in range(-(-UNCACHED // (EACH * math.prod(shape))))]

    arrived = torch.zeros(max(4096, config.vocab_size), dtype=torch.int32, device="cuda")
    stream = products.Stream(drawn(tokens, d), drawn(tokens, d), torch.rand(-(-d // 16), tokens, device="cuda"), 1e-6)
    norm, first = drawn(d), torch.zeros(1, dtype=torch.int64, device="cuda")
    projected, turns = drawn(tokens, (heads + 2 * key_heads) * size), (drawn(tokens, size), drawn(tokens, size))
    row = first, first + stored, arrived, tokens, heads, size**-0.5

    def read(weights: list[torch.Tensor], paired: bool = False) -> Any:
        return (lambda: [products.product(stream, one, arrived, paired=paired) for one in weights]), weights

    def add(given: torch.Tensor, weights: list[torch.Tensor]) -> Any:
        def run() -> None:
            to = stream
            for one in weights:
                to = products.add_product(given, one, arrived, to, norm, 1e-6)

        return run, weights

    def attend(stores: list[torch.Tensor]) -> Any:
        return (lambda: [few.attend_new(projected, turns, one[0], one[1], *row) for one in stores]), stores

    def say(given: torch.Tensor, vocabularies: list[torch.Tensor]) -> Any:
        return (lambda: [given @ one.T for one in vocabularies]), vocabularies

    kernels = {
        "queries, keys, values": read(many((heads + 2 * key_heads) * size, d)),
        "attention": attend(many(2, stored + tokens, key_heads, size)),
        "out": add(drawn(tokens, heads * size), many(d, heads * size)),
        "gates": read(many(2 * inner, d), paired=True),
        "down": add(drawn(tokens, inner), many(d, inner)),
        "head": say(drawn(tokens, d), many(config.vocab_size, d)),
    }
    return {name: (run, len(over), EACH * over[0].numel()) for name, (run, over) in kernels.items()}


def _seconds(run: Callable[[], Any]) -> float:
    """Of a replay, the median of five times ``REPEATED``."""
    device = torch.device("cuda")
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        graph.replay()
        return statistics.median(timed(lambda: _replay(graph), device)[1] for _ in range(5)) / REPEATED


def _replay(graph: torch.cuda.CUDAGraph) -> None:
    for _ in range(REPEATED):
        graph.replay()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16], choices=range(1, MOST + 1), metavar="N",
                        help=f"of a step, {MOST} or fewer")  # fmt: skip
    parser.add_argument("--stored", type=int, default=700)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
