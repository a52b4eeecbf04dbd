"""Train the bundled LLMLingua-2 head for the 22M MiniLM encoder: passages, labels, training, evaluation, one file.

    python -m benchmarks.minilm_head passages --data FOLDER --work WORK          # free text -> WORK/passages.jsonl.gz
    python -m benchmarks.minilm_head labels --work WORK --encoder FOLDER         # LLMLingua, several rates; resumes
    python -m benchmarks.minilm_head train --work WORK --encoder FOLDER --name r8 --rank 8 --embedding-rank 4
    python -m benchmarks.minilm_head evaluate --work WORK --encoder FOLDER --name r8
    python -m benchmarks.minilm_head downstream --work WORK --name r8            # the stages at equal budgets

The encoder is the folder of all-MiniLM-L6-v2 as it lies in its wheel (docs/llmlingua2.md). The teacher is this
project's own LLMLingua with paper fidelity; the student learns which words it keeps. Every step writes its result
whole or not at all and is not done twice; ``--force`` does it again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.encoders import fetch
from benchmarks.minilm import labels, passages
from pipeline.models import ModelPool, load_tokenizer, resolve_device
from pipeline.models.heads import build_classifier

PIECE = 4096
"""Passages labelled at a time: what a kill can cost."""


def main() -> None:
    arguments = _parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.encoder = arguments.encoder or fetch("minilm")
    steps = {
        "passages": _passages, "labels": _labels, "train": _train, "evaluate": _evaluate, "downstream": _downstream
    }  # fmt: skip
    for step in arguments.steps:
        steps[step](arguments)


def _passages(arguments: argparse.Namespace) -> None:
    path = arguments.work / "passages.jsonl.gz"
    if _done(path, arguments):
        return
    some = passages.collect(arguments.data, arguments.characters, arguments.seed)
    passages.write(some, path)
    held = sum(one.held for one in some)
    _say(f"{path}: {len(some)} passages, {held} held out, {sum(len(one.text) for one in some):,} characters")


def _labels(arguments: argparse.Namespace) -> None:
    from pipeline.compression.tokens import Tokenising

    some = passages.read(arguments.work / "passages.jsonl.gz")[: arguments.limit]
    pool, encoder = ModelPool(arguments.device), Tokenising(load_tokenizer(str(arguments.encoder)))
    teacher = {"method": "llmlingua", "model": arguments.scorer, "target": arguments.scorer, "dtype": arguments.dtype}
    teacher |= {"batch_tokens": arguments.batch_tokens, "device": arguments.device}
    for number, begin in enumerate(range(0, len(some), PIECE)):
        path = arguments.work / f"labels-{number:03}.npz"
        if _done(path, arguments):
            continue
        begun, piece = time.monotonic(), some[begin : begin + PIECE]
        found = labels.label(piece, teacher, encoder, pool)
        found.save(path)
        pace = len(labels.RATES) * len(found.ids) / (time.monotonic() - begun)
        _say(f"{path.name}: {begin + len(piece)}/{len(some)} passages, {pace:,.0f} tokens/s at each of the rates")


def _train(arguments: argparse.Namespace) -> None:
    import torch
    from safetensors.numpy import save
    from transformers import AutoModelForTokenClassification

    from benchmarks.minilm.training import Recipe, adapt, export, train

    path = _head(arguments)
    if _done(path, arguments):
        return
    recipe = Recipe(
        arguments.rank, arguments.embedding_rank, arguments.epochs, arguments.train_tokens, arguments.learning_rate,
        arguments.seconds, arguments.seed, arguments.whole,
    )  # fmt: skip
    data = labels.load(_pieces(arguments)).rows(held=False)
    _say(f"{recipe}; {len(data.ids):,} tokens")
    model = AutoModelForTokenClassification.from_pretrained(
        arguments.encoder, num_labels=2, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    model = model.to(resolve_device(arguments.device)).eval()  # without dropout: the head is too small to overfit
    adapt(model, recipe)
    notes = {key: str(value) for key, value in asdict(recipe).items()}

    def snapshot(line: str) -> None:
        _say(line)
        path.with_suffix(".snapshot").write_bytes(save(export(model), notes))

    train(model, data, recipe, snapshot)
    made = save(export(model), notes)
    path.write_bytes(made)
    _say(f"{path}: {len(made):,} bytes")


def _evaluate(arguments: argparse.Namespace) -> None:
    from benchmarks.minilm.evaluation import agreement, student, yardsticks

    everything = labels.load(_pieces(arguments))
    held = everything.rows(held=True)
    loaded = ModelPool(arguments.device).token_classifier(str(_folder(arguments)), arguments.dtype)
    scores = {arguments.name: student(loaded, held, arguments.batch_tokens)}
    scores |= yardsticks(held, everything.rows(held=False), arguments.seed)
    found = {name: agreement(one, held) for name, one in scores.items()}
    for name, by_rate in found.items():
        _say(
            f"{name:>8}: "
            + "; ".join(f"{rate}: AUC {one['auc']:.4f}, F1 {one['f1']:.4f}" for rate, one in by_rate.items())
        )
    result = {"head": arguments.name, "tokens": len(held.ids), "passages": len(held.lengths), "agreement": found}
    _write(arguments.work / f"evaluation-{arguments.name}.json", result)


def _downstream(arguments: argparse.Namespace) -> None:
    from benchmarks.minilm.downstream import compare
    from pipeline.compression.tokens import Tokenising

    some = passages.read(arguments.work / "passages.jsonl.gz")
    held = [one.text for one in some if one.held][: arguments.limit or 500]
    pool = ModelPool(arguments.device)
    common = {"batch_tokens": arguments.batch_tokens, "device": arguments.device, "target": arguments.scorer}
    scoring = {**common, "dtype": arguments.dtype}
    methods = {
        "llmlingua": {"method": "llmlingua", "model": arguments.scorer, **scoring},
        arguments.name: {"method": "llmlingua2", "model": str(_folder(arguments)), **scoring},
        **{name: {"method": name, **common} for name in arguments.against},
    }
    target = Tokenising(load_tokenizer(arguments.scorer))
    found = compare(held, methods, "llmlingua", target, pool)
    for name, by_rate in found.items():
        _say(f"{name:>10}: {'; '.join(f'{rate}: F1 {one:.4f}' for rate, one in by_rate.items())}")
    _write(arguments.work / f"downstream-{arguments.name}.json", {"passages": len(held), "methods": found})


def _folder(arguments: argparse.Namespace) -> Path:
    """The encoder with the head, made as `models pull` makes it."""
    folder: Path = arguments.work / f"model-{arguments.name}"
    folder.mkdir(exist_ok=True)
    build_classifier(arguments.encoder, _head(arguments).read_bytes(), folder)
    return folder


def _head(arguments: argparse.Namespace) -> Path:
    work: Path = arguments.work
    return work / f"{arguments.name}.safetensors"


def _pieces(arguments: argparse.Namespace) -> list[Path]:
    found = sorted(arguments.work.glob("labels-???.npz"))
    if not found:
        raise SystemExit(f"no labels in {arguments.work}: run the step `labels` first")
    return found


def _done(path: Path, arguments: argparse.Namespace) -> bool:
    if path.exists() and not arguments.force:
        _say(f"{path}: there already")
        return True
    return False


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))
    _say(str(path))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("steps", nargs="+", choices=["passages", "labels", "train", "evaluate", "downstream"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the steps' results")
    parser.add_argument("--data", type=Path, help="folder with corpus/ and gsm8k/")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2; default: fetched into the cache")
    parser.add_argument("--scorer", default="smollm2-135m-instruct", help="the teacher's model")
    parser.add_argument("--name", default="head", help="of the head, and of the files that belong to it")
    parser.add_argument("--characters", type=int, default=24_000_000)
    parser.add_argument("--limit", type=int, help="use only so many passages")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--embedding-rank", type=int, default=4)
    parser.add_argument(
        "--against", nargs="*", default=["random", "truncation", "tfidf"], help="methods to compare with"
    )
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="train no longer, whatever the epochs")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--train-tokens", type=int, default=65_536, help="tokens in a step of training")
    parser.add_argument("--whole", action="store_true", help="train all weights, to see what the head gives away")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens in a forward pass elsewhere")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="do the step again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
