"""How fast the stage ``encode`` is, beside the bare forward pass over the same rectangles of the same tokens.

    python -m benchmarks.slot_encoding CORPUS --model MODEL --documents 64 --json FILE

CORPUS has a ``text`` a line (.jsonl or .jsonl.gz). The encoder is random: weights are as many, and slots as large.
Tokens are those processed, memory tokens counted and padding not; the bare pass reads the model's own embeddings of as
many. What the two hold in memory is counted by their tensors. Seconds are medians over runs that take turns; on a CPU
they are the process's own, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import facts, save, spent
from benchmarks.random_weights import random_encoder
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encode_stage import Encode
from pipeline.memory.resident import resident
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Result, Run
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.memory import EncodeSpec

Shape = tuple[int, int]


def main() -> None:
    given = _parse()
    pool = ModelPool(given.device)
    with tempfile.TemporaryDirectory() as folder:
        random_encoder(folder, given.model, pool, rank=given.rank, layout=given.layout, span=given.span)
        settings = {"kind": "encode", "encoder": folder, "dtype": given.dtype, "batch_tokens": given.batch_tokens}
        settings["precision"] = given.precision
        stage = Encode(EncodeSpec.model_validate(settings), TargetSpec(model=given.model))
        there = resident(*stage.found(), given.model, given.dtype, given.device, pool)
        documents = _documents(given.corpus, given.documents)
        shapes = _shapes(stage, documents, pool, there.coder)
        device = there.base.device
        outcomes = stage.run(documents, Run(pool))
        both = [lambda: stage.run(documents, Run(pool)), lambda: _bare(there.base, shapes)]
        turns = [[spent(work, device)[1] for work in both] for _ in range(given.runs)]
        encoding, bare = (statistics.median(one) for one in zip(*turns, strict=True))
    rows = [one.fields for one in outcomes if isinstance(one, Result)]
    read = sum(row["tokens_encoded"] for row in rows)
    tokens = read + sum(row["slots"] for row in rows)
    padded = sum(rows * width for rows, width in shapes)
    print(f"encode    {tokens / encoding:12,.0f} tokens/s processed, {read / encoding:,.0f} of contexts")
    print(f"bare pass {tokens / bare:12,.0f} tokens/s, the same {len(shapes)} rectangles")
    print(f"share     {bare / encoding:12.1%}; padding {1 - tokens / padded:.1%}")
    figures = {"tokens": tokens, "padded": padded, "encode": encoding, "bare": bare, **_memory(there)}
    held, more = (figures[name] / 2**20 for name in ("model_bytes", "more_bytes"))
    print(f"memory    {held:12,.0f} MiB the model, {more:,.1f} MiB more for the encoder")
    save(given.json, {"facts": facts(device, given.dtype), **figures})


def _memory(there: Any) -> dict[str, int]:
    """Bytes of the model that answers, and of what the encoder holds beside it."""
    held = {one.data_ptr(): one.nbytes for one in there.base.model.parameters()}
    own = {one.data_ptr(): one.nbytes for one in there.coder.parameters()}
    return {"model_bytes": sum(held.values()), "more_bytes": sum(n for at, n in own.items() if at not in held)}


def _shapes(stage: Encode, documents: Sequence[Document], pool: ModelPool, coder: Autoencoder) -> list[Shape]:
    """The rectangles that the stage has its encoder read; it is warm then."""
    found: list[Shape] = []
    real = coder.read

    def noted(words: torch.Tensor) -> torch.Tensor:
        found.append((words.shape[0], words.shape[1]))
        return real(words)

    coder.read = noted  # type: ignore[method-assign]
    stage.run(documents, Run(pool))
    del coder.read
    return found


@torch.inference_mode()
def _bare(loaded: LoadedModel, shapes: Sequence[Shape]) -> None:
    model: Any = loaded.model
    trunk = model.get_decoder()
    for rows, width in shapes:
        ids = torch.arange(rows * width, device=loaded.device).view(rows, width) % 1000
        trunk(inputs_embeds=trunk.get_input_embeddings()(ids), use_cache=False)


def _documents(corpus: Path, number: int) -> list[Document]:
    with gzip.open(corpus, "rt") if corpus.suffix == ".gz" else corpus.open() as file:
        texts = [json.loads(line)["text"] for line in islice(file, number)]
    parts = [PromptParts(contexts=(text,)) for text in texts]
    return [Document(at, str(at), one, one.content_hash()) for at, one in enumerate(parts)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--precision", default="float16", choices=["float16", "int8", "int4"])
    parser.add_argument("--layout", default="interleaved", choices=["interleaved", "appended", "pooled"])
    parser.add_argument("--rank", type=int, default=34)
    parser.add_argument("--span", type=int, default=128)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
