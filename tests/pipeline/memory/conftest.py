"""Models for the tests of memory slots, kept for a file of them; what is encoded, counted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning_jobs import texts
from pretraining_jobs import stage
from tiny_models import lines

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.ragged import encode_spans
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Run
from schemas.memory import EncoderSpec


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu", limit=4)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return ModelPool("cpu").causal_lm(str(tiny_model))


@pytest.fixture(scope="module")
def corpus(base: LoadedModel) -> Corpus:
    texts = ["\n".join(lines()[at : at + 12]) for at in range(0, 120, 12)]
    return Corpus.of([base.tokenizer(text)["input_ids"] for text in texts])


@pytest.fixture(scope="module")
def coder(base: LoadedModel, corpus: Corpus) -> Autoencoder:
    """As drawn, at the size of embeddings: slots of it say next to nothing."""
    torch.manual_seed(0)
    made = Autoencoder(copy.deepcopy(base.model), EncoderSpec(rank=4, alpha=8.0))
    with torch.inference_mode(False), torch.no_grad():
        some = made.encode(torch.from_numpy(corpus.windows(np.random.default_rng(1), 32, 16)).long(), 8)
        made.resize(some)
        made.describe(made.map(some).flatten(0, 1))
    return made


@pytest.fixture
def spans(corpus: Corpus) -> list[Any]:
    """Of different lengths."""
    random = np.random.default_rng(0)
    return [corpus.windows(random, 1, size)[0].astype(np.int64) for size in (12, 7, 24)]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many spans were encoded, pass by pass."""
    spans: list[int] = []

    def counted(coder: Any, ids: Any, counts: Any) -> Any:
        spans.append(len(ids))
        return encode_spans(coder, ids, counts)

    monkeypatch.setattr("pipeline.memory.encoding.encode_spans", counted)
    yield spans


@pytest.fixture(scope="module")
def pretrained(tiny_model: Path, pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an encoder that repeats what a fine-tuning asks about."""
    folder, documents = tmp_path_factory.mktemp("pretrained"), texts(20)
    stage(tiny_model, steps=60).run(documents, Run(pool, folder=str(folder)))
    return str(folder / "encoder")
