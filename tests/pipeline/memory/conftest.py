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

from pipeline.memory import replaying
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
def replayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[replaying.Recurring]]:
    """Parts that are replayed from now on, each held to what it teaches when it is launched, from the same weights: two
    trainings would not do, since what rounding has made of one weight is soon seen in all."""
    made, call = replaying._Replay.__init__, replaying._Replay.__call__
    parts, differences = list[replaying.Recurring](), list[str]()  # told at the end: recording takes errors for its own

    def init(self: Any, recorder: Any, learn: Any, weights: Any, part: Any) -> None:
        made(self, recorder, learn, weights, part)
        self.learn = learn

    def held(self: Any, part: Any) -> torch.Tensor:
        loss, weights = call(self, part), self._weights
        replays = [one.grad for one in weights]
        for one in weights:
            one.grad = None
        launched = self.learn(part)
        if loss.item() != pytest.approx(launched.item(), rel=2e-3):
            differences.append(f"{part.shape}: loss {loss.item()}, launched {launched.item()}")
        for one, grad in zip(weights, replays, strict=True):
            if not float((one.grad - grad).norm()) <= 0.05 * float(grad.norm()):
                differences.append(f"{part.shape}: a gradient {list(grad.shape)}")
            one.grad = grad  # the recording's own, as ever: the next must not write into what was kept of this one
        parts.append(part)
        return loss

    monkeypatch.setattr(replaying._Replay, "__init__", init)
    monkeypatch.setattr(replaying._Replay, "__call__", held)
    yield parts
    assert not differences


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
