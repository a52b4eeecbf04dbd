"""Passes after cached keys and values and over whole texts, eager, compiled, and by kernels of our own; and where the
time of whole engines goes, on one GPU.

    python -m benchmarks.cached_passes --model FOLDER                                   # check and times of passes
    python -m benchmarks.cached_passes --model FOLDER --data DATA --prompts 512         # and profiles of LLMLingua
    python -m benchmarks.cached_passes --model FOLDER --data DATA --encoder A B         # and of token classifiers

``--skip-passes`` leaves out the first. What fails is told, and the rest goes on.

``FOLDER`` has config.json and the tokenizer's files; without any weights they are random. ``floor`` is
the operations of the layers' matrix products over the rate of one large product on the same machine; ``launched`` is
how long the processor is at it. The engines'
``busy`` is kernel time over wall time; ``stacks`` are samples of what their threads were doing, waiting included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engines import Compressor, reference, staged, watched
from benchmarks.measuring import kernel_seconds, table, timed
from benchmarks.peers.classifier import with_untrained_head
from benchmarks.random_weights import with_weights
from benchmarks.workloads import documents, gsm8k
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool
from schemas.compress import LLMLingua2Spec, LLMLinguaSpec

SHAPES = ((564, 100, 32), (564, 118, 130), (564, 118, 300), (128, 118, 130))
"""Rows, new tokens and cached columns of a pass, means over its rows."""


TEXTS = ((870, 150), (64, 2048))
"""Texts read whole in one pass, and their mean length."""


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(with_weights(arguments.model, Path(temporary) / "scorer"))
        if not arguments.skip_passes:
            with _going_on("passes"):
                _passes(arguments, folder)
        if arguments.data:
            _engines(arguments, folder, Path(temporary))
    print("compiled graphs:", dict(torch._dynamo.utils.counters["stats"]))
    print("recompilations:", dict(torch._dynamo.utils.counters["recompile_limit"]) or "none over the limit")


@contextmanager
def _going_on(name: str) -> Iterator[None]:
    """What fails is told, and the rest measured all the same."""
    try:
        yield
    except Exception:  # noqa: BLE001  whatever it is
        print(f"\n{name} failed:\n{traceback.format_exc()}", flush=True)


def _passes(arguments: argparse.Namespace, folder: str) -> None:
    """Errors and times of one pass of each shape, eager and compiled."""
    scorers = {name: _scorer(name, arguments, folder) for name in ("eager", "compiled", "ours")}
    rate = _product_rate(scorers["eager"])
    rows = [_shape(scorers, shape, rate) for shape in SHAPES]
    print(table(rows, list(rows[0])))
    rows = [_texts(scorers, *shape) for shape in TEXTS]
    print(table(rows, list(rows[0])), flush=True)


def _scorer(name: str, arguments: argparse.Namespace, folder: str) -> Scorer:
    loaded = ModelPool(arguments.device).causal_lm(folder, arguments.dtype)
    trunk: Any = loaded.model.get_decoder()
    if name != "ours":
        trunk.contextmill_wide = None  # as where kernels fail
    if name == "eager":
        trunk.contextmill_compiled = False  # as where compiling does
        loaded.model.get_output_embeddings().contextmill_nats = False  # logits, too
    begun = time.perf_counter()
    scorer = Scorer(loaded, arguments.batch_tokens)
    ready = "by kernels of our own" if getattr(trunk, "contextmill_wide", None) else f"packed: {scorer.packs}"
    print(f"{name}: ready in {time.perf_counter() - begun:.1f} s; {ready}", flush=True)
    return scorer


def _timed(wanted: str, scorer: Scorer, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What comes of it, and milliseconds: until it is done, and until it is launched."""
    name = wanted if wanted == (really := _name(scorer)) else f"{wanted} ({really})"
    timed(work, 3, scorer.device)
    found, spread = timed(work, 9, scorer.device)
    launched = []
    for _ in range(9):
        if scorer.device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        launched.append(time.perf_counter() - begun)
    return found, {f"{name} ms": 1e3 * spread.median, f"{name} launched": 1e3 * float(np.median(launched))}


def _name(scorer: Scorer) -> str:
    if getattr(scorer.trunk, "contextmill_wide", None):
        return "ours"
    return "compiled" if getattr(scorer.trunk, "contextmill_compiled", False) else "eager"


@torch.inference_mode()
def _texts(scorers: dict[str, Scorer], number: int, mean: int) -> dict[str, Any]:
    """Whole texts, as rankings read them, hidden states alone."""
    plain = scorers["eager"]
    random = np.random.default_rng(number)
    lengths = np.sort(random.integers(mean * 4 // 5, mean * 6 // 5 + 1, number))[::-1].copy()
    ids = torch.from_numpy(random.integers(5, 40_000, int(lengths.sum()))).to(plain.device)
    row: dict[str, Any] = {"texts": number, "tokens": len(ids)}
    found = []
    for name, scorer in scorers.items():
        states, times = _timed(name, scorer, lambda scorer=scorer: scorer.states(ids, lengths))  # type: ignore[misc]
        found.append(states)
        row |= times
    return {**row, "errors": " ".join(f"{_apart(one, found[0]):.1e}" for one in found[1:])}


@torch.inference_mode()
def _shape(scorers: dict[str, Scorer], shape: tuple[int, int, int], rate: float) -> dict[str, Any]:
    plain = scorers["eager"]
    number, new, columns = shape
    random = np.random.default_rng(number + new + columns)
    rows = np.arange(number)
    cached = random.integers(columns // 2, columns * 3 // 2 + 1, number)
    counts = random.integers(new * 4 // 5, new * 6 // 5 + 1, number)
    before, after = (
        torch.from_numpy(random.integers(5, 40_000, int(some.sum()))).to(plain.device) for some in (cached, counts)
    )
    row: dict[str, Any] = {"rows": number, "new": int(counts.sum()), "cached": int(cached.sum())}
    found = []
    for name, scorer in scorers.items():
        passes = scorer.passes(number)
        passes.run(rows, before, np.zeros_like(cached), cached)

        def work(scorer: Scorer = scorer, passes: Any = passes) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = passes.run(rows, after, cached, counts)
            return hidden, scorer.surprisal(hidden[:4096], after[1:4097])

        result, times = _timed(name, scorer, work)
        found.append(result)
        row |= times
        del passes
    weights = sum(one.weight.numel() for one in plain.trunk.layers.modules() if isinstance(one, torch.nn.Linear))
    errors = (f"{_apart(one[0], found[0][0]):.1e}/{_apart(one[1], found[0][1]):.1e}" for one in found[1:])
    return {**row, "floor ms": 1e3 * 2 * weights * int(counts.sum()) / rate, "errors": " ".join(errors)}


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@torch.inference_mode()
def _product_rate(scorer: Scorer) -> float:
    """Operations per second of a large matrix product."""
    size = 8192 if scorer.device.type == "cuda" else 512
    one = torch.randn(size, size, device=scorer.device).to(scorer.head.weight.dtype)
    timed(lambda: one @ one, 3, scorer.device)
    return 2 * size**3 / timed(lambda: one @ one, 9, scorer.device)[1].median


def _engines(arguments: argparse.Namespace, folder: str, temporary: Path) -> None:
    pool = ModelPool(arguments.device, limit=1)
    prompts = gsm8k(arguments.data, arguments.prompts, "distinct")
    common = {"dtype": arguments.dtype, "device": arguments.device, "batch_tokens": arguments.batch_tokens}
    spec = LLMLinguaSpec(kind="compress", model=folder, target_tokens=200, **common)
    again = reference(pool, folder, arguments.dtype, arguments.batch_tokens, {"target_token": 200}, arguments.device)
    for name, compress in (("paper fidelity", staged(pool, spec, folder)), ("reference fidelity", again)):
        with _going_on(name):
            trunk = pool.causal_lm(folder, arguments.dtype, arguments.device).model.get_decoder()
            _profile(name, compress, prompts, trunk)
            del trunk
    for encoder in arguments.encoder:
        with _going_on(encoder.name):
            name = str(with_untrained_head(encoder, temporary))
            loaded = pool.token_classifier(name, arguments.dtype, arguments.device)
            texts = documents(arguments.data, arguments.prompts, 2048, loaded.tokenizer)
            chosen = LLMLingua2Spec(kind="compress", method="llmlingua2", model=name, rate=0.33, **common)
            _profile(encoder.name, staged(pool, chosen, name), texts, loaded.model.base_model)
            print("packed:", getattr(loaded.model.base_model, "contextmill_packs", False), flush=True)


def _profile(name: str, compress: Compressor, prompts: Sequence[Any], trunk: Any) -> None:
    device = next(trunk.parameters()).device

    def work() -> Any:
        return compress(prompts, lambda tokens: None)

    begun = time.perf_counter()
    work()
    print(f"\n{name}: {len(prompts)} prompts, warm-up {time.perf_counter() - begun:.1f} s", flush=True)
    with watched(trunk) as passed, _sampled() as stacks:
        _, spread = timed(work, 2, device)
    busy = kernel_seconds(work, device)
    print(f"{spread.median:.2f} s ({spread.lowest:.2f}), {len(passed) // 2} passes of {sum(passed) / 2:,.0f} tokens")
    if busy is not None:
        print(f"busy {busy:.2f} s = {busy / spread.median:.0%}")
        print(_kernels(work))
    total = sum(stacks.values())
    print("stacks, share of the samples of all lanes:")
    for stack, count in stacks.most_common(25):
        print(f"  {count / total:6.1%}  {stack}")
    sys.stdout.flush()


def _kernels(work: Callable[[], Any]) -> str:
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        torch.cuda.synchronize()
    events = profile.key_averages()
    by_kernel = events.table(sort_by="self_cuda_time_total", row_limit=15, max_name_column_width=70)
    by_host = events.table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=70)
    return f"{_narrow(by_kernel)}\n{_narrow(by_host)}"


def _narrow(text: str) -> str:
    """Names, the host's and the device's own time and the calls: a table's other columns say the same again."""
    return "\n".join(line for line in text.splitlines() if line.strip(" -"))


@contextmanager
def _sampled(seconds: float = 0.005) -> Iterator[Counter[str]]:
    """How often the threads of lanes were seen in which of our functions, the innermost two of them."""
    found: Counter[str] = Counter()
    done = threading.Event()

    def look() -> None:
        while not done.wait(seconds):
            names = {one.ident: one.name for one in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if names.get(ident, "").startswith("compress"):
                    found[_place(frame)] += 1

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _place(frame: Any) -> str:
    """Innermost line, and the two innermost functions of this package around it."""
    innermost = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
    ours: list[str] = []
    while frame is not None and len(ours) < 2:
        if "/pipeline/" in frame.f_code.co_filename:
            ours.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join([innermost, *ours])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with gsm8k, prose, squality and qmsum; without: no engines")
    parser.add_argument("--encoder", type=Path, nargs="*", default=[], help="folders as for classifier_speed")
    parser.add_argument("--skip-passes", action="store_true", help="profiles of engines alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--prompts", type=int, default=512)
    return parser.parse_args()


if __name__ == "__main__":
    main()
