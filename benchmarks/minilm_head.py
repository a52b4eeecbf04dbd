"""Train the bundled LLMLingua-2 head for the 22M MiniLM encoder, and measure it: one command, some minutes on a GPU.

    python -m benchmarks.minilm_head --data DATA --work WORK --device cuda --dtype bfloat16 --batch-tokens 131072
    python -m benchmarks.minilm_head evaluate downstream answers --data DATA --work WORK --whole    # some of the steps

``passages``: free text below DATA (corpus, gsm8k) in passages. ``labels``: what the teacher, this project's own
LLMLingua with paper fidelity, keeps of each at several rates. ``train``: the student learns it. ``evaluate``: agreement
on passages never seen. ``downstream``: whole texts through the compress stage, the student and others against the
teacher at equal budgets. ``answers``: what of the answers to SQuAD's questions (below DATA) is left in compressed texts
(``benchmarks/minilm/answers.py``).

The encoder is the folder of all-MiniLM-L6-v2 as it lies in its wheel (docs/llmlingua2.md). The first three steps write
their results whole or not at all. Names of the files hold a digest of all that the content depends on: what is there
already was made the same way, and is not made twice; ``--force`` makes it again. WORK may come with the passages alone.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoders import fetch
from benchmarks.measuring import facts, save, table
from benchmarks.minilm import labels, passages
from benchmarks.minilm.training import Recipe
from pipeline.models import ModelPool, digest_of, load_tokenizer, resolve_device
from pipeline.models.heads import build_classifier
from pipeline.reporting import write_whole

PIECE = 4096
"""Passages labelled at a time: what a kill can cost."""

TEACHER = "llmlingua"


def main() -> None:
    arguments = _parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.encoder = arguments.encoder or fetch("minilm")
    steps: dict[str, Callable[[argparse.Namespace], None]] = {
        "passages": _passages, "labels": _labels, "train": _train, "evaluate": _evaluate, "downstream": _downstream,
        "answers": _answers,
    }  # fmt: skip
    for step in arguments.steps or steps:
        begun = time.monotonic()
        steps[step](arguments)
        _say(f"{step}: {time.monotonic() - begun:.0f} s")


def _passages(arguments: argparse.Namespace) -> None:
    path = _passages_file(arguments)
    if _done(path, arguments):
        return
    some = passages.collect(arguments.data, arguments.characters, arguments.seed)
    passages.write(some, path)
    held = sum(one.held for one in some)
    _say(f"{path}: {len(some)} passages, {held} held out, {sum(len(one.text) for one in some):,} characters")


def _labels(arguments: argparse.Namespace) -> None:
    from pipeline.compression.tokens import Tokenising

    some = passages.read(_passages_file(arguments))[: arguments.limit]
    pool, encoder = ModelPool(arguments.device), Tokenising(load_tokenizer(str(arguments.encoder)))
    key = _labels_key(arguments)
    for number, begin in enumerate(range(0, len(some), PIECE)):
        path = arguments.work / f"labels-{key}-{number:03}.npz"
        if _done(path, arguments):
            continue
        begun, piece = time.monotonic(), some[begin : begin + PIECE]
        found = labels.label(piece, _teacher(arguments), encoder, pool)
        found.save(path)
        pace = len(labels.RATES) * len(found.ids) / (time.monotonic() - begun)
        _say(f"{path.name}: {begin + len(piece)}/{len(some)} passages, {pace:,.0f} tokens/s at each of the rates")


def _train(arguments: argparse.Namespace) -> None:
    from safetensors.numpy import save as to_bytes
    from transformers import AutoModelForTokenClassification

    from benchmarks.minilm.training import adapt, export, train

    path, recipe = _head(arguments), _recipe(arguments)
    if _done(path, arguments):
        return
    data = _labelled(arguments).rows(held=False)
    _say(f"{recipe}; {len(data.ids):,} tokens")
    model = AutoModelForTokenClassification.from_pretrained(
        arguments.encoder, num_labels=2, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    model = model.to(resolve_device(arguments.device)).eval()  # without dropout: the head is too small to overfit
    adapt(model, recipe)
    train(model, data, recipe, _say)
    made = to_bytes(export(model), {key: str(value) for key, value in asdict(recipe).items()})
    write_whole(path, made)
    _say(f"{path}: {len(made):,} bytes, sha256 {hashlib.sha256(made).hexdigest()}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from benchmarks.minilm.evaluation import agreement, student, yardsticks

    everything = _labelled(arguments)
    held = everything.rows(held=True)
    loaded = ModelPool(arguments.device).token_classifier(str(_folder(arguments)))
    scores = {"head": student(loaded, held, arguments.batch_tokens)}
    scores |= yardsticks(held, everything.rows(held=False), arguments.seed)
    found = {name: agreement(one, held) for name, one in scores.items()}
    said = {"held_out_passages": len(held.lengths), "held_out_tokens": len(held.ids)}
    rows = [
        {"scores by": name, "rate": rate, **one} for name, by_rate in found.items() for rate, one in by_rate.items()
    ]
    _report(arguments, "evaluation", rows, ("scores by", "rate", "auc", "f1", "kept"), said)


def _downstream(arguments: argparse.Namespace) -> None:
    from benchmarks.minilm.downstream import compare
    from pipeline.compression.tokens import Tokenising

    held = [one.text for one in passages.read(_passages_file(arguments)) if one.held][: arguments.compared]
    target = Tokenising(load_tokenizer(arguments.scorer))
    found = compare(held, _methods(arguments), TEACHER, target, ModelPool(arguments.device))
    rows = [{"method": name, **by_rate} for name, by_rate in found.items()]
    columns = ("method", *map(str, labels.RATES))
    _report(arguments, "downstream", rows, columns, {"f1_against": TEACHER, "passages": len(held)})


def _answers(arguments: argparse.Namespace) -> None:
    from benchmarks.minilm.answers import scores, squad

    some, pool = squad(arguments.data, arguments.compared, arguments.seed), ModelPool(arguments.device)
    reader = pool.causal_lm(arguments.scorer, arguments.dtype)
    found = scores(some, _methods(arguments), reader, arguments.batch_tokens, pool)
    rows = [{"compressed by": name, **one} for name, one in found.items()]
    said = {"texts": len(some), "questions": sum(len(one.questions) for one in some)}
    _report(arguments, "answers", rows, ("compressed by", "kept", "nats"), said)


def _methods(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Settings of the stages that are compared; the student runs in float32."""
    common = {"batch_tokens": arguments.batch_tokens, "device": arguments.device, "target": arguments.scorer}
    return {
        TEACHER: _teacher(arguments),
        "head": {"method": "llmlingua2", "model": str(_folder(arguments)), **common},
        **{name: {"method": name, **common} for name in arguments.against},
    }


def _teacher(arguments: argparse.Namespace) -> dict[str, Any]:
    named = {"method": TEACHER, "model": arguments.scorer, "target": arguments.scorer, "dtype": arguments.dtype}
    return named | {"batch_tokens": arguments.batch_tokens, "device": arguments.device}


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        arguments.rank, arguments.embedding_rank, arguments.epochs, arguments.train_tokens, arguments.learning_rate,
        arguments.seed, arguments.whole,
    )  # fmt: skip


def _folder(arguments: argparse.Namespace) -> Path:
    """The encoder with the head, made as `models pull` makes it."""
    folder: Path = arguments.work / f"model-{_head(arguments).stem}"
    folder.mkdir(exist_ok=True)
    build_classifier(arguments.encoder, _head(arguments).read_bytes(), folder)
    return folder


def _passages_file(arguments: argparse.Namespace) -> Path:
    work: Path = arguments.work
    if arguments.data and (arguments.data / "corpus").is_dir():
        made = passages.made_from(arguments.data, arguments.characters, arguments.seed)
        return work / f"passages-{_key(made)}.jsonl.gz"
    found = sorted(work.glob("passages-*.jsonl.gz"))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} files of passages in {work}: --data with a folder corpus says which are meant")
    return found[0]


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _labels_key(arguments: argparse.Namespace) -> str:
    settings = {key: one for key, one in _teacher(arguments).items() if key in ("method", "dtype")}
    return _key({
        "passages": _digest(_passages_file(arguments)), "limit": arguments.limit, "piece": PIECE,
        "teacher": [settings, labels.identity(_teacher(arguments))], "rates": labels.RATES,
        "encoder": digest_of(str(arguments.encoder), weights=False),
    })  # fmt: skip


def _head(arguments: argparse.Namespace) -> Path:
    work: Path = arguments.work
    encoder, recipe = digest_of(str(arguments.encoder)), asdict(_recipe(arguments))
    return work / f"head-{_key({'labels': _labels_key(arguments), 'encoder': encoder, 'recipe': recipe})}.safetensors"


def _key(made_from: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


def _labelled(arguments: argparse.Namespace) -> labels.Labelled:
    found = sorted(arguments.work.glob(f"labels-{_labels_key(arguments)}-???.npz"))
    wanted = -(-len(passages.read(_passages_file(arguments))[: arguments.limit]) // PIECE)
    if len(found) != wanted:
        raise SystemExit(f"{len(found)} of {wanted} pieces of labels in {arguments.work}: run the step `labels` first")
    return labels.load(found)


def _done(path: Path, arguments: argparse.Namespace) -> bool:
    if path.exists() and not arguments.force:
        _say(f"{path}: there already")
        return True
    return False


def _report(
    arguments: argparse.Namespace, name: str, rows: list[dict[str, Any]], columns: tuple[str, ...], said: dict[str, Any]
) -> None:
    head = _head(arguments)
    said |= {"head": head.name, "head_sha256": _digest(head), "recipe": asdict(_recipe(arguments))}
    said |= {"facts": facts(torch.device(resolve_device(arguments.device)), arguments.dtype)}
    save(arguments.work / f"{name}-{head.stem}.json", {**said, "rows": rows})
    print(f"{table(rows, columns)}\n{said}", flush=True)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["passages", "labels", "train", "evaluate", "downstream", "answers"]
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(every)}; default: all")
    parser.add_argument("--work", type=Path, required=True, help="folder of the steps' results")
    parser.add_argument("--data", type=Path, help="folder with corpus, gsm8k and squad in it")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2; default: fetched into the cache")
    parser.add_argument("--scorer", default="smollm2-135m-instruct", help="the teacher's model; it counts budgets")
    parser.add_argument("--characters", type=int, default=24_000_000)
    parser.add_argument("--limit", type=int, help="label and train on only so many passages")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--embedding-rank", type=int, default=4)
    parser.add_argument(
        "--against", nargs="*", default=["random", "truncation", "tfidf"], help="methods to compare with"
    )
    parser.add_argument("--compared", type=int, default=200, help="texts in the steps downstream and answers")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--train-tokens", type=int, default=65_536, help="tokens in a step of training")
    parser.add_argument("--whole", action="store_true", help="train all weights, to see what the head gives away")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens in a forward pass elsewhere")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="the teacher's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="do the steps again")
    arguments = parser.parse_args()
    if unknown := [step for step in arguments.steps if step not in every]:
        parser.error(f"no step {unknown[0]!r}: one of {', '.join(every)}")
    return arguments


if __name__ == "__main__":
    main()
