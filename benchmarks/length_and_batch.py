"""Our compression's tokens per second over the length of documents and their number: cost must grow linearly.

    python -m benchmarks.length_and_batch --data DATA --dtype bfloat16 --batch-tokens 65536 --json FILE --plot FILE.png
    python -m benchmarks.length_and_batch --data DATA --lengths 128 512 --documents 1 4 16 --most-tokens 8192

Every point compresses so many different documents of one length at ``--rate``; points of more than ``--most-tokens``
tokens are left out. Tokens are the scorer's own. The exponent b of seconds ~ tokens^b, by least squares on logarithms
over the points of at least ``--from-tokens`` tokens (smaller ones do not fill the device), is 1 where cost is linear.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engines import Compressor, staged
from benchmarks.measuring import Spread, facts, save, table, timed
from benchmarks.workloads import documents
from pipeline.models import ModelPool, load_tokenizer
from pipeline.models.pool import resolve_device
from schemas.compress import CompressSpec, LLMLingua2Spec, LLMLinguaSpec
from schemas.document import PromptParts

SPECS: dict[str, type[CompressSpec]] = {"llmlingua": LLMLinguaSpec, "llmlingua2": LLMLingua2Spec}


@dataclass(frozen=True, slots=True)
class Point:
    """``documents`` documents of ``length`` tokens each."""

    length: int
    documents: int
    seconds: Spread

    @property
    def tokens(self) -> int:
        """Tokens in."""
        return self.length * self.documents

    @property
    def rate(self) -> float:
        """Tokens in per second."""
        return self.tokens / self.seconds.median


def main() -> None:
    arguments = _parse()
    device = torch.device(resolve_device(arguments.device))
    pool, spec = ModelPool(arguments.device), _spec(arguments)
    target = arguments.target or "smollm2-135m-instruct"
    compress, tokenizer = staged(pool, spec, target), load_tokenizer(arguments.model or spec.scoring_models[0])
    figures: dict[str, Any] = {"facts": facts(device, arguments.dtype)}
    points: list[Point] = []
    for length in arguments.lengths:
        counts = [count for count in arguments.documents if count * length <= arguments.most_tokens]
        if not counts:
            continue
        prompts = documents(arguments.data, max(counts), length, tokenizer)
        for count in counts:
            points.append(_point(compress, prompts[:count], length, arguments.runs, device))
            save(arguments.json, figures | _summary(points, arguments.from_tokens))
    summary = _summary(points, arguments.from_tokens)
    print(table(summary["points"], ("length", "documents", "tokens", "median", "lowest", "highest", "tokens/s")))
    print(f"seconds ~ tokens^b: {summary['exponents']}\n{figures['facts']}")
    if arguments.plot:
        plot(points, arguments.plot)


def _spec(arguments: argparse.Namespace) -> CompressSpec:
    named = {"model": arguments.model} if arguments.model else {}
    settings = {name: getattr(arguments, name) for name in ("method", "dtype", "rate", "device", "batch_tokens")}
    return SPECS[arguments.method].model_validate({"kind": "compress", **settings, **named})


def _point(compress: Compressor, prompts: Sequence[PromptParts], length: int, runs: int, device: torch.device) -> Point:
    print(f"{len(prompts)} documents of {length} tokens", file=sys.stderr, flush=True)
    timed(lambda: compress(prompts[:256], lambda tokens: None), 1, device)
    texts, seconds = timed(lambda: compress(prompts, lambda tokens: None), runs, device)
    if None in texts:
        raise SystemExit(f"{texts.count(None)} of {len(texts)} documents of {length} tokens were refused: raise --rate")
    return Point(length, len(prompts), seconds)


def _summary(points: Sequence[Point], least: int) -> dict[str, Any]:
    rows = [
        {"length": one.length, "documents": one.documents, "tokens": one.tokens, "tokens/s": one.rate,
         **asdict(one.seconds)}
        for one in points
    ]  # fmt: skip
    counted = [one for one in points if one.tokens >= least]
    exponents = {"all": exponent(counted)}
    for length in sorted({one.length for one in counted}):
        exponents[f"{length} tokens each"] = exponent([one for one in counted if one.length == length])
    return {"points": rows, "exponents": {name: found for name, found in exponents.items() if found is not None}}


def exponent(points: Sequence[Point]) -> float | None:
    """b of seconds ~ tokens^b; None unless the points have at least three different sizes."""
    if len({one.tokens for one in points}) < 3:
        return None
    sizes, seconds = ([np.log(value) for value in values] for values in zip(
        *((one.tokens, one.seconds.median) for one in points), strict=True
    ))  # fmt: skip
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 3)


def plot(points: Sequence[Point], path: Path) -> None:
    """Two panels: tokens per second over length, a line for each number of documents, and the other way round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, over, by, unit in zip(
        panels, ("length", "documents"), ("documents", "length"), ("documents", "tokens each"), strict=True
    ):
        for value in sorted({getattr(one, by) for one in points}):
            line = sorted((getattr(one, over), one.rate) for one in points if getattr(one, by) == value)
            panel.plot(*zip(*line, strict=True), marker="o", markersize=3, label=f"{value:,} {unit}")
        panel.set(xscale="log", yscale="log", xlabel="tokens in a document" if over == "length" else over)
        panel.set_xticks(
            values := sorted({getattr(one, over) for one in points}), labels=[f"{one:,}" for one in values]
        )
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("tokens per second")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with prose, squality and qmsum in it")
    parser.add_argument("--method", default="llmlingua", choices=SPECS)
    parser.add_argument("--model", help="the scorer; default: the method's own")
    parser.add_argument("--target", help="model whose tokenizer counts budgets; default: SmolLM2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2_048, 8_192, 32_768])
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1_024, 4_096])
    parser.add_argument("--most-tokens", type=int, default=2**21)
    parser.add_argument("--from-tokens", type=int, default=2**16)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG")
    return parser.parse_args()


if __name__ == "__main__":
    main()
