"""Our compression's tokens per second over the length of documents and their number: cost must grow linearly.

    python -m benchmarks.length_and_batch --data DATA --dtype float16 --batch-tokens 131072 --json FILE.json    # a GPU
    python -m benchmarks.length_and_batch --data DATA --lengths 128 512 --documents 1 4 16 --most-tokens 8192
    python -m benchmarks.length_and_batch --from FILE.json --plot FILE.svg

Every point compresses so many different documents of one length to ``--rate`` of them; points of more than
``--most-tokens`` tokens are left out. Engines are LLMLingua in paper and in reference fidelity, and LLMLingua-2.
Weights may be random: speed depends on shapes alone. Tokens are the scorer's own. A point is run once, and ``--runs``
times more if that took less than ``--patience`` seconds: these count then. A plot goes beside the JSON. The exponent b
of seconds ~ tokens^b, by least squares on logarithms over the points of at least ``--from-tokens`` tokens (smaller ones
do not fill the device), is 1 where cost is linear.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engines import Compressor, reference, staged
from benchmarks.measuring import Spread, facts, save, table, timed
from benchmarks.workloads import Library
from pipeline.models import ModelPool, load_tokenizer
from pipeline.models.pool import resolve_device
from schemas.compress import LLMLingua2Spec, LLMLinguaSpec
from schemas.document import PromptParts

ENGINES = ("paper", "reference", "llmlingua2")
COLUMNS = ("engine", "length", "documents", "tokens", "median", "lowest", "highest", "runs", "tokens/s")


@dataclass(frozen=True, slots=True)
class Point:
    """``documents`` documents of ``length`` tokens each, compressed by ``engine``."""

    engine: str
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
    if arguments.from_json:
        plot(_points(json.loads(arguments.from_json.read_text(encoding="utf-8"))), arguments.plot)
        return
    device = torch.device(resolve_device(arguments.device))
    figures: dict[str, Any] = {"facts": facts(device, arguments.dtype), "rate": arguments.rate}
    points: list[Point] = []
    library = Library.of(arguments.data, arguments.most_tokens, load_tokenizer(arguments.model))
    pool = ModelPool(arguments.device)
    for engine in arguments.engines:
        compress = _engine(engine, pool, arguments)
        compress(library.documents(8, min(arguments.lengths)), lambda tokens: None)
        for length in arguments.lengths:
            for count in (count for count in arguments.documents if count * length <= arguments.most_tokens):
                points.append(_point(engine, compress, library.documents(count, length), length, arguments, device))
                save(arguments.json, figures | _summary(points, arguments.from_tokens))
    summary = _summary(points, arguments.from_tokens)
    print(table(summary["points"], COLUMNS))
    fitted = summary["exponents"] or f"no three sizes of at least {arguments.from_tokens:,} tokens (--from-tokens)"
    print(f"seconds ~ tokens^b: {fitted}\n{figures['facts']}")
    if arguments.plot:
        plot(points, arguments.plot)


def _engine(name: str, pool: ModelPool, arguments: argparse.Namespace) -> Compressor:
    common = {"dtype": arguments.dtype, "batch_tokens": arguments.batch_tokens, "device": arguments.device}
    if name == "reference":
        return reference(pool, arguments.model, **common, options={"rate": arguments.rate})
    if name == "paper":
        paper = LLMLinguaSpec(kind="compress", model=arguments.model, rate=arguments.rate, **common)
        return staged(pool, paper, arguments.model)
    spec = LLMLingua2Spec(
        kind="compress", method="llmlingua2", model=arguments.classifier, rate=arguments.rate, **common
    )
    return staged(pool, spec, arguments.model)


def _point(
    engine: str, compress: Compressor, prompts: Sequence[PromptParts], length: int, arguments: argparse.Namespace,
    device: torch.device,
) -> Point:  # fmt: skip
    print(f"{engine}: {len(prompts)} documents of {length} tokens", file=sys.stderr, flush=True)
    texts, seconds = timed(lambda: compress(prompts, lambda tokens: None), 1, device)
    if None in texts:
        raise SystemExit(f"{texts.count(None)} of {len(texts)} documents of {length} tokens were refused: raise --rate")
    if seconds.median < arguments.patience and arguments.runs:
        _, seconds = timed(lambda: compress(prompts, lambda tokens: None), arguments.runs, device)
    return Point(engine, length, len(prompts), seconds)


def _summary(points: Sequence[Point], least: int) -> dict[str, Any]:
    rows = [
        {"engine": one.engine, "length": one.length, "documents": one.documents, "tokens": one.tokens,
         "tokens/s": one.rate, **asdict(one.seconds)}
        for one in points
    ]  # fmt: skip
    exponents: dict[str, float | None] = {}
    for engine in dict.fromkeys(one.engine for one in points):
        counted = [one for one in points if one.engine == engine and one.tokens >= least]
        exponents[engine] = exponent(counted)
        for length in sorted({one.length for one in counted}):
            exponents[f"{engine}, {length} tokens each"] = exponent([one for one in counted if one.length == length])
    return {"points": rows, "exponents": {name: found for name, found in exponents.items() if found is not None}}


def _points(figures: dict[str, Any]) -> list[Point]:
    """What ``_summary`` made rows of."""
    return [
        Point(
            row["engine"], row["length"], row["documents"],
            Spread(row["median"], row["lowest"], row["highest"], row["runs"]),
        )
        for row in figures["points"]
    ]  # fmt: skip


def exponent(points: Sequence[Point]) -> float | None:
    """b of seconds ~ tokens^b; None unless the points have at least three different sizes."""
    if len({one.tokens for one in points}) < 3:
        return None
    sizes, seconds = ([np.log(value) for value in values] for values in zip(
        *((one.tokens, one.seconds.median) for one in points), strict=True
    ))  # fmt: skip
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 3)


def plot(points: Sequence[Point], path: Path) -> None:
    """Of each engine two panels: tokens per second over length, a line for each number of documents, and over number.

    Where there is no matplotlib, says so.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"no matplotlib here: plot elsewhere with --from, --plot {path.name}", file=sys.stderr)
        return
    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # a tenth of the size
    from matplotlib import pyplot

    engines = list(dict.fromkeys(one.engine for one in points))
    size = (11, 3.6 * len(engines))
    figure, grid = pyplot.subplots(len(engines), 2, figsize=size, sharey=True, layout="constrained", squeeze=False)
    for engine, panels in zip(engines, grid, strict=True):
        some = [one for one in points if one.engine == engine]
        _panel(panels[0], some, "length", "documents", ("tokens in a document", "documents"))
        _panel(panels[1], some, "documents", "length", ("documents", "tokens each"))
        panels[0].set_ylabel(f"{engine}: tokens per second")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(panel: Any, points: Sequence[Point], over: str, by: str, words: tuple[str, str]) -> None:
    for value in sorted({getattr(one, by) for one in points}):
        line = sorted((getattr(one, over), one.rate) for one in points if getattr(one, by) == value)
        panel.plot(*zip(*line, strict=True), marker="o", markersize=3, label=f"{value:,} {words[1]}")
    values = sorted({getattr(one, over) for one in points})
    panel.set(xscale="log", yscale="log", xlabel=words[0])
    panel.set_xticks(values, labels=[f"{one:,}" for one in values])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with prose, squality and qmsum in it")
    parser.add_argument("--engines", nargs="+", default=["paper", "reference"], choices=ENGINES)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the scorer; its tokenizer counts budgets")
    parser.add_argument("--classifier", default="llmlingua2-minilm", help="what llmlingua2 reads with")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2_048, 8_192, 32_768])
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1_024, 4_096])
    parser.add_argument("--most-tokens", type=int, default=2**20)
    parser.add_argument("--from-tokens", type=int, default=2**16)
    parser.add_argument("--runs", type=int, default=2, help="beside the first")
    parser.add_argument("--patience", type=float, default=1.5, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG; default: an SVG beside the JSON")
    parser.add_argument("--from", type=Path, dest="from_json", metavar="FILE", help="measure nothing, plot this JSON")
    arguments = parser.parse_args()
    written = arguments.from_json or arguments.json
    arguments.plot = arguments.plot or (written and written.with_suffix(".svg"))
    if not (arguments.data or arguments.from_json):
        parser.error("--data, or --from")
    return arguments


if __name__ == "__main__":
    main()
