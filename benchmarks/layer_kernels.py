"""What the five kernels of a layer take in a step of decoding, beside the reading of what they read.

    python -m benchmarks.layer_kernels --model FOLDER --tokens 1 8 16        # a GPU; FOLDER has config.json

Each kernel alone, once for every layer of the model with weights of its own (random ones), as a CUDA graph: no weight
is still in the cache. Microseconds a layer, the median of five; ``floor``: the same bytes at ``--bandwidth``. Attention
is of one row behind ``--stored`` columns. The head is torch's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import facts, save, table
from pipeline.generation.timing import timed

REPEATED = 30
HEADS = 3
"""Heads, one after the other: enough not to be in the cache."""


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

    d, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or d // heads
    made = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int, number: int = layers) -> list[torch.Tensor]:
        every: dict[str, Any] = {"generator": made, "device": "cuda", "dtype": torch.bfloat16}
        return [0.02 * torch.randn(shape, **every) for _ in range(number)]

    arrived = torch.zeros(max(4096, config.vocab_size), dtype=torch.int32, device="cuda")
    (states, weighted), (norm,) = drawn(tokens, d, number=2), drawn(d, number=1)
    stream = products.Stream(states, weighted, torch.rand(-(-d // 16), tokens, device="cuda"), 1e-6)
    queries, gates = drawn((heads + 2 * key_heads) * size, d), drawn(2 * inner, d)
    out, down, (attended,), (gated,) = (
        drawn(d, heads * size), drawn(d, inner), drawn(tokens, heads * size, number=1), drawn(tokens, inner, number=1)
    )  # fmt: skip
    keys, values = (drawn(stored + tokens, key_heads, size) for _ in range(2))
    (projected,), turns = drawn(tokens, (heads + 2 * key_heads) * size, number=1), drawn(tokens, size, number=2)
    first = torch.zeros(1, dtype=torch.int64, device="cuda")
    before, (last,), vocabularies = (
        first + stored,
        drawn(tokens, d, number=1),
        drawn(config.vocab_size, d, number=HEADS),
    )

    def attend() -> None:
        for key, value in zip(keys, values, strict=True):
            where = first, before, arrived, tokens, heads, size**-0.5
            few.attend_new(projected, (turns[0], turns[1]), key, value, *where)

    def add(given: torch.Tensor, weights: list[torch.Tensor]) -> None:
        to = stream
        for one in weights:
            to = products.add_product(given, one, arrived, to, norm, 1e-6)

    each = 2  # bytes of a number
    return {
        "queries, keys, values": (
            lambda: [products.product(stream, one, arrived) for one in queries], layers, each * queries[0].numel()
        ),
        "attention": (attend, layers, each * 2 * stored * key_heads * size),
        "out": (lambda: add(attended, out), layers, each * out[0].numel()),
        "gates": (
            lambda: [products.product(stream, one, arrived, paired=True) for one in gates], layers,
            each * gates[0].numel(),
        ),
        "down": (lambda: add(gated, down), layers, each * down[0].numel()),
        "head": (lambda: [last @ one.T for one in vocabularies], HEADS, each * vocabularies[0].numel()),
    }  # fmt: skip


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
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16], help="of a step; at most 16")
    parser.add_argument("--stored", type=int, default=700)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
