"""Wide passes carry all that reads a model: answers, drafts, scores, and slots made with its weights; whoever comes
first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_encoder, save_tiny_llama
from written_out import write_out

from pipeline.compression.scoring import Scorer
from pipeline.generation import decoding
from pipeline.generation.decoding import passes_for
from pipeline.generation.early_exit import early_exit
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.ragged import encode_spans
from pipeline.memory.resident import resident
from pipeline.models import LoadedModel, ModelPool
from pipeline.models.encoders import read_manifest
from pipeline.passes import recorded
from pipeline.passes.heads import reads_logits_once
from pipeline.passes.packed import PackedPasses
from pipeline.passes.wide import Wide
from pipeline.stages import Run
from schemas.stage import GenerateSpec

DRAWN = torch.Generator().manual_seed(0)
IDS = [torch.randint(3, 300, (length,), generator=DRAWN).tolist() for length in (9, 70, 2, 41, 90, 23)]
SHARED = torch.randn(70, 64, generator=DRAWN) / 4
PROMPTS = [Prompt.of([SHARED, one] if place % 2 else [one], 16, place) for place, one in enumerate(IDS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in half precision, where nothing may be compiled."""

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C compiler")

    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    write_out(monkeypatch)
    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(recorded, "RECORDERS", {})


@pytest.fixture
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu", limit=3)
    yield pool
    pool.close()


def answers(loaded: LoadedModel, drafters: Sequence[LoadedModel] = (), **settings: Any) -> list[list[int]]:
    spec = GenerateSpec(kind="generate", drafters=[one.ref.name for one in drafters], **settings)
    made = LocalGenerator(loaded, spec, Run(ModelPool("cpu")), drafters).generate(PROMPTS)
    return [one.tokens for one in made]


def plain(folder: Path, **settings: Any) -> list[list[int]]:
    found = answers(ModelPool("cpu").causal_lm(str(folder)), **settings)
    assert len({token for one in found for token in one}) > 20
    return found


def widened(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_worth_packing", lambda loaded: True)
    assert passes_for(loaded) is PackedPasses
    trunk: Any = loaded.model.get_decoder()
    assert isinstance(trunk.contextmill_wide, Wide)
    assert "forward" not in vars(trunk.layers[0]), "no layer is compiled"


def scores(scorer: Scorer) -> torch.Tensor:
    lengths, ids = np.array([len(one) for one in IDS]), torch.tensor([one for text in IDS for one in text])
    with torch.inference_mode():
        return scorer.surprisal(scorer.states(ids, lengths)[:-1], ids[1:])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_answers_are_those_of_padded_passes(
    folder: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """With vectors, copies, and the first layers of the model itself, which were taken before it was made ready."""
    expected, loaded = plain(folder, **settings), pool.causal_lm(str(folder))
    first = early_exit(loaded, 1)
    widened(loaded, monkeypatch)
    for batch_tokens in (100, 16384):
        assert answers(loaded, batch_tokens=batch_tokens, draft_tokens=5, **settings) == expected
        assert answers(loaded, [first], batch_tokens=batch_tokens, draft_rounds=(2,), **settings) == expected
    widened(first, monkeypatch)


@pytest.mark.parametrize("first", ["scores", "answers"])
def test_who_scores_and_who_answers_share_a_model(
    folder: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    """And neither misses a compiler."""
    expected = plain(folder), scores(Scorer(ModelPool("cpu").causal_lm(str(folder)), 400))
    loaded = pool.causal_lm(str(folder))
    scorer = Scorer(loaded, 400)
    if first == "answers":
        widened(loaded, monkeypatch)
    scorer._hasten(scorer.trunk)
    assert scorer.packs and reads_logits_once(scorer.head)
    found = scores(scorer)
    widened(loaded, monkeypatch)
    assert answers(loaded) == expected[0]
    for one in (found, scores(scorer)):
        assert torch.allclose(one, expected[1], atol=1e-4)
    assert not caplog.records


@pytest.mark.parametrize("first", ["slots", "answers", "scores"])
def test_slots_are_made_with_the_same_weights_before_and_after(
    folder: Path, tmp_path: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """An encoder shares the weights of the model that answers, whose products may have been joined by then or be so
    later: one copy, and what the encoder learned."""
    encoder, expected = save_tiny_encoder(tmp_path / "encoder", folder), plain(folder)
    spans, counts = [np.array(one[:16]) for one in IDS if len(one) >= 16], [4] * 4

    def coder_of(pool: ModelPool) -> Autoencoder:
        return resident(encoder, read_manifest(encoder), str(folder), "float32", "cpu", pool).coder

    def slots(pool: ModelPool) -> torch.Tensor:
        coder = coder_of(pool)
        with torch.inference_mode():
            return torch.cat(encode_spans(coder, spans, counts))

    right, loaded = slots(ModelPool("cpu")), pool.causal_lm(str(folder))
    if first == "slots":
        assert torch.equal(slots(pool), right)
    if first == "scores":
        scorer = Scorer(loaded, 400)
        scorer._hasten(scorer.trunk)
    else:
        widened(loaded, monkeypatch)
    assert torch.allclose(slots(pool), right, atol=1e-5)
    widened(loaded, monkeypatch)
    assert answers(loaded) == expected
    assert torch.allclose(slots(pool), right, atol=1e-5)
    theirs = {one.untyped_storage().data_ptr() for one in loaded.model.parameters()}
    found = dict(coder_of(pool).model.named_parameters())
    own = [name for name, one in found.items() if one.untyped_storage().data_ptr() not in theirs]
    assert own and all("lora_" in name for name in own) and len(own) < len(found)
