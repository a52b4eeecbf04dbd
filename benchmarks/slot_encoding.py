"""How fast the stage ``encode`` is, beside bare forward passes over as many tokens.

    python -m benchmarks.slot_encoding CORPUS --model MODEL --documents 64 --json FILE

CORPUS has a ``text`` a line (.jsonl or .jsonl.gz). Without --encoder it is random: weights are as many, and slots as
large. With --refine, ``fitted`` is the same stage with so many steps of it at most, once.
Tokens are those processed, memory tokens counted and padding not. A bare pass reads the model's own embeddings of as
many, without low-rank weights, tokenizer, slots or files:

    bare pass    transformers' layers, eager, over the rectangles of padded passes
    wide pass    our own kernels, over the very passes of the stage, on a GPU in half precision: the fastest there is

``tokenizer`` is the time in which documents become spans when nothing else is done; on a GPU passes go on meanwhile.
What model and encoder hold in memory is counted by their tensors. Seconds are medians over runs that take turns; on a
CPU they are the process's own, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.measuring import facts, save, spent
from benchmarks.random_weights import random_encoder
from pipeline.compression.tokens import Tokenising
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encode_stage import Encode
from pipeline.memory.outlines import outlines_of
from pipeline.memory.resident import Resident, resident
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.apart import apart
from pipeline.passes.packable import reads_wide
from pipeline.passes.packed import Pack
from pipeline.passes.wide import Wide
from pipeline.stages import Result, Run
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.memory import EncodeSpec

Shape = tuple[int, int]
"""Rows and columns of a padded pass."""

Flat = tuple[torch.Tensor, Pack]
"""Of a wide pass: places of its tokens, and where they belong."""


def main() -> None:
    given = _parse()
    pool = ModelPool(given.device)
    with tempfile.TemporaryDirectory() as folder:
        if not given.encoder:
            random_encoder(folder, given.model, pool, rank=given.rank, layout=given.layout, span=given.span)
        spec = EncodeSpec(
            kind="encode", encoder=given.encoder or folder, dtype=given.dtype, batch_tokens=given.batch_tokens,
            precision=given.precision, span=given.span if given.encoder else None,
        )  # fmt: skip
        stage = Encode(spec, TargetSpec(model=given.model))
        there = resident(*stage.found(), given.model, given.dtype, given.device, pool)
        documents = _documents(given.corpus, given.documents)
        shapes, flat = _shapes(stage, documents, pool, there.coder), _flat(stage, documents, pool, there.coder)
        device, plain = there.base.device, apart(there.base.model)
        outcomes = stage.run(documents, Run(pool))
        works: dict[str, Callable[[], Any]] = {
            "encode": lambda: stage.run(documents, Run(pool)),
            "bare": lambda: _bare(plain, device, shapes),
            "tokenizer": lambda: _outlined(stage, documents, there),
        }
        if flat and reads_wide(there.base.model.get_decoder()):
            works["wide"] = lambda: _wide(there.base, flat)
        for work in works.values():
            work()
        turns = [[spent(work, device)[1] for work in works.values()] for _ in range(given.runs)]
        seconds = {name: statistics.median(one) for name, one in zip(works, zip(*turns, strict=True), strict=True)}
        if given.refine:
            fitted = Encode(spec.model_copy(update={"refine": given.refine}), TargetSpec(model=given.model))
            fitted.run(documents[:1], Run(pool))
            seconds["fitted"] = spent(lambda: fitted.run(documents, Run(pool)), device)[1]
    rows = [one.fields for one in outcomes if isinstance(one, Result)]
    read = sum(row["tokens_encoded"] for row in rows)
    tokens = read + sum(row["slots"] for row in rows)
    padded, encoding = sum(rows * width for rows, width in shapes), seconds["encode"]
    print(f"encode    {tokens / encoding:12,.0f} tokens/s processed, {read / encoding:,.0f} of contexts")
    print(f"bare pass {tokens / seconds['bare']:12,.0f} tokens/s, {len(shapes)} rectangles of transformers'", end="")
    print(f", padding {1 - tokens / padded:.1%}; encode: {seconds['bare'] / encoding:.1%} of it")
    if "wide" in seconds:
        print(f"wide pass {tokens / seconds['wide']:12,.0f} tokens/s, {len(flat)} passes of our own kernels", end="")
        print(f", no padding; encode: {seconds['wide'] / encoding:.1%} of it")
    if "fitted" in seconds:
        print(f"fitted    {read / seconds['fitted']:12,.0f} tokens/s of contexts, in at most {given.refine} steps")
    print(f"tokenizer {seconds['tokenizer']:12.3f} s, encode {encoding:.3f} s")
    figures = {"tokens": tokens, "padded": padded, **seconds, **_memory(there)}
    held, more = (figures[name] / 2**20 for name in ("model_bytes", "more_bytes"))
    print(f"memory    {held:12,.0f} MiB the model, {more:,.1f} MiB more for the encoder")
    save(given.json, {"facts": facts(device, given.dtype), **figures})


def _memory(there: Any) -> dict[str, int]:
    """Bytes of the model that answers, and of what the encoder holds beside it: tensors may be parts of one storage."""
    held, own = (
        {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
        for model in (there.base.model, there.coder)
    )
    return {"model_bytes": sum(held.values()), "more_bytes": sum(n for at, n in own.items() if at not in held)}


def _shapes(stage: Encode, documents: Sequence[Document], pool: ModelPool, coder: Autoencoder) -> list[Shape]:
    """The rectangles that the stage has its encoder read where spans are padded; it is warm then."""
    found: list[Shape] = []
    real = coder.read

    def noted(words: torch.Tensor) -> torch.Tensor:
        found.append((words.shape[0], words.shape[1]))
        return real(words)

    with mock.patch.object(coder, "wide", None), mock.patch.object(coder, "read", noted):
        stage.run(documents, Run(pool))
    return found


def _flat(stage: Encode, documents: Sequence[Document], pool: ModelPool, coder: Autoencoder) -> list[Flat]:
    """The wide passes of the stage; none where spans are padded."""
    found: list[Flat] = []
    real = Wide.read

    def noted(wide: Wide, states: torch.Tensor, at: torch.Tensor, pack: Any) -> torch.Tensor:
        found.append((at, pack))
        return real(wide, states, at, pack)

    if coder.wide is not None:
        with mock.patch.object(Wide, "read", noted):
            stage.run(documents, Run(pool))
    return found


@torch.inference_mode()
def _bare(model: Any, device: torch.device, shapes: Sequence[Shape]) -> None:
    trunk = model.get_decoder()
    for rows, width in shapes:
        ids = torch.arange(rows * width, device=device).view(rows, width) % 1000
        trunk(inputs_embeds=trunk.get_input_embeddings()(ids), use_cache=False)


@torch.inference_mode()
def _wide(loaded: LoadedModel, passes: Sequence[Flat]) -> None:
    trunk: Any = loaded.model.get_decoder()
    for at, pack in passes:
        ids = torch.arange(len(at), device=loaded.device) % 1000
        trunk.contextmill_wide.read(trunk.get_input_embeddings()(ids), at, pack)


def _outlined(stage: Encode, documents: Sequence[Document], there: Resident) -> None:
    _, manifest = stage.found()
    outlines_of(documents, Tokenising(there.base.tokenizer), stage.cut(manifest), stage.spec.keep_text)


def _documents(corpus: Path, number: int) -> list[Document]:
    with gzip.open(corpus, "rt") if corpus.suffix == ".gz" else corpus.open() as file:
        texts = [json.loads(line)["text"] for line in islice(file, number)]
    parts = [PromptParts(contexts=(text,)) for text in texts]
    return [Document(at, str(at), one, one.content_hash()) for at, one in enumerate(parts)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--encoder", help="one of the model's; random")
    parser.add_argument("--refine", type=int, default=0, help="steps in which slots are fitted to their spans")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--precision", default="float16", choices=["float16", "int8", "int4"])
    parser.add_argument("--layout", default="interleaved", choices=["interleaved", "appended", "pooled"])
    parser.add_argument("--rank", type=int, default=32, help="a multiple of 8: else a GPU is slow")
    parser.add_argument("--span", type=int, default=128)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
