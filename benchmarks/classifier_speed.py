"""LLMLingua-2 with the same weights in llmlingua 0.2.2 and here, post-processing included: one script, two processes.

    python -m benchmarks.classifier_speed --data DATA --dtype float16 --json FILE
    python -m benchmarks.classifier_speed --data DATA --encoder minilm --documents 8 --peer-documents 8

An encoder is minilm, mpnet (``benchmarks/encoders.py``), or a folder with config.json, tokenizer.json,
special_tokens_map.json and, unless random weights will do, model.safetensors. It gets an untrained head of two labels:
what a head says makes no difference to speed. The library runs twice: a call for each document, and one call for all
(its batches of 50 chunks are full then; ``--runs`` times, the median); the faster is the peer. It is warmed up by
``--warm-up-peer`` documents and by one call for all, ours by ``--warm-up``. Both count what comes out in another
tokenizer than the encoder's, as a real job does: the library in cl100k, ours in that of ``--target``.
``overlap`` is the share of words that both keep, where two random choices would share as many as the rate says.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.encoders import ENCODERS, fetch
from benchmarks.engines import Texts, staged
from benchmarks.measuring import Spread, facts, save, table
from benchmarks.peers.classifier import with_untrained_head
from benchmarks.peers.environment import Environment, build
from benchmarks.peers.process import Peer, case, warming
from benchmarks.speed import Bench, counter
from benchmarks.workloads import documents
from pipeline.models import ModelPool
from schemas.compress import LLMLingua2Spec
from schemas.document import PromptParts

COLUMNS = (
    "encoder", "engine", "documents", "tokens", "seconds", "lowest", "highest", "tokens/s", "x peer", "passed", "kept",
    "overlap", "busy",
)  # fmt: skip


def main() -> None:
    arguments = _parse()
    environment = None if arguments.no_peer else build(arguments.peer, arguments.wheels)
    figures: dict[str, Any] = {"rows": []}
    for name in arguments.encoder:
        encoder = fetch(name) if name in ENCODERS else Path(name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = with_untrained_head(encoder, Path(temporary))
            _measure(arguments, encoder.name, folder, environment, figures)
    print(table(figures["rows"], COLUMNS))
    print(f"documents run unmeasured before: {figures['warm_up']}")
    print(f"ours: {figures['facts']}\nllmlingua: {figures.get('peer_facts')}")


def _measure(
    arguments: argparse.Namespace, name: str, folder: Path, environment: Environment | None, figures: dict[str, Any]
) -> None:
    pool = ModelPool(arguments.device, limit=1)
    loaded = pool.token_classifier(str(folder), arguments.dtype)
    count = counter(loaded.tokenizer)
    prompts = documents(arguments.data, arguments.documents, arguments.length, loaded.tokenizer)
    figures.setdefault("facts", facts(loaded.device, arguments.dtype))
    origin, peer = count([prompt.render() for prompt in prompts]), None
    answers: list[str] = []
    if environment:
        runner = Peer(environment, folder, loaded.device.type, arguments.dtype, arguments.threads, llmlingua2=True)
        figures["peer_facts"], origin, answers, rows = _ask(arguments, runner, prompts, count)
        figures["rows"] += [{"encoder": name, **row} for row in rows]
        peer = max(row["tokens/s"] for row in rows)
    spec = LLMLingua2Spec(
        kind="compress", method="llmlingua2", model=str(folder), dtype=arguments.dtype, device=arguments.device,
        rate=arguments.rate, batch_tokens=arguments.batch_tokens,
    )  # fmt: skip
    warm_up = arguments.warm_up or (256 if loaded.device.type == "cuda" else 1)
    figures["warm_up"] = {"ours, at most": warm_up, "the library, and all at once": arguments.warm_up_peer}
    bench = Bench(loaded.device, loaded.model.base_model, count, arguments.runs, warm_up)
    speed, texts = bench.speed(staged(pool, spec, arguments.target), prompts, origin)
    figures["rows"].append({
        **asdict(speed), **asdict(speed.seconds), "encoder": name, "engine": "contextmill", "documents": speed.prompts,
        "tokens": speed.origin_tokens, "seconds": speed.seconds.median, "tokens/s": speed.tokens_per_second,
        "x peer": peer and speed.tokens_per_second / peer, "overlap": overlap(texts[: len(answers)], answers),
    })  # fmt: skip
    save(arguments.json, figures)


def _ask(
    arguments: argparse.Namespace, peer: Peer, prompts: Sequence[PromptParts], count: Any
) -> tuple[dict[str, Any], list[int], list[str], list[dict[str, Any]]]:
    """Facts, origin tokens of all prompts, the first prompts' compressed texts, and a row for each way to call it."""
    options = {"rate": arguments.rate, "use_context_level_filter": False}
    first = prompts[: arguments.peer_documents]
    one_by_one = [case(0, prompt, **options) for prompt in first]
    together = case(0, _together(first), **options)
    counted = [case(0, prompt, "count") for prompt in prompts]
    warm = warming([*one_by_one[: arguments.warm_up_peer], together])
    found, answers = peer.answers([*warm, *one_by_one, *[together] * arguments.runs, *counted], _tell)
    if failed := next((one["error"] for one in answers if "error" in one), None):
        raise SystemExit(f"the peer failed: {failed}")
    single, joint = answers[: len(first)], answers[len(first) : len(first) + arguments.runs]
    origin = answers[len(first) + arguments.runs :]
    own = sum(count([prompt.render() for prompt in first]))
    rows = [
        _row("llmlingua, one by one", len(first), single, own, count),
        _row("llmlingua, one call", len(first), [_median(joint)], own, count)
        | {"lowest": min(one["seconds"] for one in joint), "highest": max(one["seconds"] for one in joint)},
    ]
    return found, [one["origin_tokens"] for one in origin], [one["compressed_prompt"] for one in single], rows


def _median(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer that took the median of the seconds."""
    return sorted(answers, key=lambda one: float(one["seconds"]))[len(answers) // 2]


def _together(prompts: Sequence[PromptParts]) -> PromptParts:
    return PromptParts(contexts=tuple(context for prompt in prompts for context in prompt.contexts))


def _row(engine: str, number: int, answers: Sequence[dict[str, Any]], own: int, count: Any) -> dict[str, Any]:
    each = Spread.of([one["seconds"] for one in answers])
    tokens, seconds = (sum(one[name] for one in answers) for name in ("origin_tokens", "seconds"))
    return {
        "engine": engine, "documents": number, "tokens": tokens, "seconds": seconds, "tokens/s": tokens / seconds,
        "lowest": each.lowest, "highest": each.highest, "passed": sum(one["scored"] for one in answers) / own,
        "kept": sum(count([one["compressed_prompt"] for one in answers])) / number,
    }  # fmt: skip


def overlap(texts: Texts, answers: Sequence[str]) -> float | None:
    """Words that both kept over the mean of what each kept; None where there is nothing to compare."""
    shares = []
    for ours, theirs in zip(texts, answers, strict=True):
        left, right = (Counter(re.findall(r"\w+", (text or "").lower())) for text in (ours, theirs))
        shares.append(2 * (left & right).total() / max(1, left.total() + right.total()))
    return sum(shares) / len(shares) if shares else None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with prose, squality and qmsum in it")
    parser.add_argument("--encoder", nargs="+", default=list(ENCODERS), metavar="NAME_OR_FOLDER")
    parser.add_argument("--target", default="smollm2-135m-instruct", help="whose tokenizer counts our budgets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, help="CPU threads of the peer; default: torch's choice, as for ours")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--rate", type=float, default=0.33)
    parser.add_argument("--length", type=int, default=2_048, help="tokens in a document, the encoder's own")
    parser.add_argument("--documents", type=int, default=1_024)
    parser.add_argument("--peer-documents", type=int, default=32, help="of these, the peer gets so many")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, help="documents compressed unmeasured; default: 256, on a CPU 1")
    parser.add_argument("--warm-up-peer", type=int, default=2, help="the same for the library, one by one")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="the peer's environment; default: in the cache")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="what benchmarks.peers.environment --pack made")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
