"""Pretraining of memory encoders against the clock: how many context tokens a second, and how well spans come back.

    python -m benchmarks.icae_pretraining CORPUS --model MODEL --minutes 5 --out FOLDER
    python -m benchmarks.icae_pretraining CORPUS --model MODEL --layout appended --rank 0 --minutes 5 --out FOLDER
    python -m benchmarks.icae_pretraining CORPUS --model MODEL --decoder-rank 32 --minutes 5

CORPUS has train.jsonl.gz and valid.jsonl.gz with a ``text`` a line. The number of steps is what fits the minutes, by
the speed of the first ones. Held-out spans of prose are repeated from their slots: nats a token and the share of tokens
right when told those before (teacher forcing); sentence BLEU-4 and prefix match of greedy reconstructions.

With ``--decoder-rank`` the decoder learns, too, by low-rank weights of its own: what the frozen model lacks to read its
slots. Contextmill has no such encoders, since the model that answers is the target as it is; it is a yardstick.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.measuring import facts, save
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.lowrank import adapt
from pipeline.memory.measure import Measuring, mean
from pipeline.memory.target import check_head, start_of
from pipeline.memory.training import Trainer
from pipeline.memory.training import train as taught
from pipeline.memory.windows import batch_of
from pipeline.models import LoadedModel, ModelPool
from schemas.memory import EncoderSpec, Lesson, PretrainSpec

WARM, TIMED = 10, 10
"""Steps before the clock is read, since compilers are at work; and between readings, since they wait for the device."""


def main() -> None:
    arguments = _parse()
    torch.manual_seed(arguments.seed)
    loaded = ModelPool(arguments.device).causal_lm(arguments.model, "bfloat16" if arguments.half else "float32")
    spec = _spec(arguments)
    check_head(loaded.model, loaded.ref.name)
    coder = _coder(loaded, spec.encoder, arguments.decoder_rank)
    train, valid = (_corpus(arguments, name, loaded.tokenizer) for name in ("train", "valid"))
    if arguments.begin:
        weights = load_file(arguments.begin, device=str(loaded.device))
        coder.load_state_dict(weights, strict=False)
    else:
        first = batch_of(train, spec, 0, loaded.device)
        with torch.no_grad(), torch.autocast(loaded.device.type, torch.bfloat16, enabled=arguments.half):
            coder.resize(coder.encode(first.contexts[:64], first.slots))
    if arguments.compile:
        coder.hasten()
    found = _run(coder, spec, train, valid, arguments, loaded.tokenizer, loaded.device)
    save(arguments.json, {"facts": facts(loaded.device, "bfloat16" if arguments.half else "float32"), **found})
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        kept = {name: one.detach().half().cpu().contiguous() for name, one in coder.kept().items()}
        save_file(kept, arguments.out / "encoder.safetensors", {"spec": spec.encoder.model_dump_json()})


def _coder(loaded: LoadedModel, spec: EncoderSpec, decoder_rank: int) -> Autoencoder:
    model: Any = loaded.model
    decoder = copy.deepcopy(model.get_decoder()).requires_grad_(False) if decoder_rank else None
    coder = Autoencoder(model, spec, start_of(loaded.tokenizer))
    if decoder is not None:
        adapt(decoder, decoder_rank, 2.0 * decoder_rank, ()).on = True  # for good
        coder.decoder = decoder
        setattr(model, model.base_model_prefix, decoder)  # which writes
    return coder


def _run(
    coder: Autoencoder, spec: PretrainSpec, train: Corpus, valid: Corpus, arguments: argparse.Namespace,
    tokenizer: Any, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    warm = Trainer(coder, spec, arguments.half)
    clock: list[float] = []
    for number in range(WARM + 3 * TIMED + 1):
        loss = warm.step(0, batch_of(train, spec, number, device))
        if number >= WARM and (number - WARM) % TIMED == 0:
            clock.append(_now(loss))
    each = float(np.median(np.diff(clock))) / TIMED
    tokens = len(batch_of(train, spec, 0, device).contexts.flatten())
    warm.rest()
    steps = max(30, int(arguments.minutes * 60 / each))
    print(f"{tokens / each:,.0f} context tokens/s, {each * 1e3:.0f} ms a step, {steps} steps", flush=True)
    spec = spec.model_copy(update={"steps": steps})
    curve: list[dict[str, float]] = []
    begun = time.perf_counter()

    def told(step: int, loss: torch.Tensor) -> None:
        if step % max(1, steps // 50) == 0 or step == steps - 1:
            curve.append({"step": step, "seconds": time.perf_counter() - begun, "loss": float(loss)})
            print(json.dumps(curve[-1]), flush=True)

    taught(Trainer(coder, spec, arguments.half), lambda step: [batch_of(train, spec, step, device)], 0, told)
    seconds = time.perf_counter() - begun
    held = [_held(coder, valid, one, arguments, tokenizer, device) for one in arguments.check]
    for one in held:
        print(json.dumps(one), flush=True)
    return {
        "spec": spec.model_dump(mode="json"), "tokens/s": tokens / each, "seconds": seconds,
        "trained": sum(one.numel() for one in coder.trained().values()), "curve": curve, "held out": held,
    }  # fmt: skip


def _held(
    coder: Autoencoder, valid: Corpus, check: str, arguments: argparse.Namespace, tokenizer: Any, device: torch.device
) -> dict[str, Any]:
    size, slots = map(int, check.split(":"))
    ids = torch.from_numpy(valid.windows(np.random.default_rng(7), arguments.spans, size)).to(device)
    measuring = Measuring(coder, tokenizer, ids, ((size, slots),), 32 * (size + slots + 1), arguments.half)
    found = measuring.measure(len(ids))
    nats, right, bleu, prefix = mean(found)
    return {
        "tokens": size, "slots": slots, "spans": len(ids), "nats": nats, "right": right, "BLEU-4": 100 * bleu,
        "BLEU-4, median": 100 * float(np.median([one.bleu4 for one in found])), "prefix": prefix,
    }  # fmt: skip


def _now(loss: torch.Tensor) -> float:
    float(loss)
    return time.perf_counter()


def _corpus(arguments: argparse.Namespace, name: str, tokenizer: Any) -> Corpus:
    def texts() -> Iterator[str]:
        with gzip.open(arguments.corpus / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if name == "train" or row["source"].startswith(arguments.prose):
                    yield row["text"]

    rows = list(texts())[: arguments.texts]
    return Corpus.of(tokenizer(rows, add_special_tokens=False)["input_ids"])


def _spec(arguments: argparse.Namespace) -> PretrainSpec:
    lessons = []
    for one in arguments.lessons:
        tokens, slots, share = one.split(":")
        lessons.append(Lesson(tokens=int(tokens), ratio=int(tokens) / int(slots), share=float(share)))
    encoder = EncoderSpec(
        layout=arguments.layout, rank=arguments.rank, alpha=arguments.alpha or 2.0 * max(1, arguments.rank)
    )
    return PretrainSpec(
        encoder=encoder, autoencoding=arguments.autoencoding, distilled=arguments.distilled, lessons=tuple(lessons),
        mixed=arguments.mixed, steps=10**6, tokens_per_step=arguments.tokens_per_step,
        learning_rate=arguments.learning_rate,
        memory_rate=arguments.memory_rate, decay=arguments.decay, seed=arguments.seed,
    )  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("--model", required=True)
    parser.add_argument("--layout", default="interleaved", choices=["interleaved", "appended", "pooled"])
    parser.add_argument("--rank", type=int, default=32, help="0: the encoder's weights are all its own")
    parser.add_argument("--decoder-rank", type=int, default=0, help="a decoder that learns, too; 0: the frozen model")
    parser.add_argument("--alpha", type=float, help="default: twice the rank")
    parser.add_argument("--lessons", nargs="+", default=["128:32:1"], help="tokens:slots:share of the steps")
    parser.add_argument("--mixed", action="store_true", help="each step draws its lesson")
    parser.add_argument("--check", nargs="+", default=["128:32"], help="tokens:slots of held-out spans")
    parser.add_argument("--spans", type=int, default=128, help="held-out spans of each kind")
    parser.add_argument("--prose", default="", help="sources of held-out texts begin so")
    parser.add_argument("--texts", type=int, help="at most so many of each file")
    parser.add_argument("--autoencoding", type=float, default=1.0, help="share of rows that are repeated")
    parser.add_argument("--distilled", type=float, default=0.0, help="share of the target's own words in the others")
    parser.add_argument("--tokens-per-step", type=int, default=32_768)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--memory-rate", type=float, default=3.0)
    parser.add_argument("--decay", type=float, default=0.25, help="share of the steps in which the rate goes down to 0")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--begin", type=Path, help="an encoder.safetensors to go on from")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--float32", dest="half", action="store_false")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
