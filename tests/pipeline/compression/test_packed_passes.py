"""Compiled passes without padding give what eager ones with padding give; what cannot be packed stays as it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import row_by_row  # noqa: F401  the kernel
import torch
from classifier_models import KINDS as CLASSIFIERS
from classifier_models import save_classifier
from compress_models import KINDS, save_model
from test_compress_scoring import LENGTHS, stream
from transformers import masking_utils

from pipeline.compression.classifier import Classifier
from pipeline.compression.classifier import hastened as hastened_classifier
from pipeline.compression.iterative import rank
from pipeline.compression.reading import surprisals
from pipeline.compression.reference.reading import Text, mean_losses
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool
from pipeline.passes import packed
from pipeline.passes.compiling import hasten, read_once
from pipeline.passes.packable import can_pack
from pipeline.passes.packed import PackedPasses

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by dynamo alone. With torch's own compiler a test would take half a minute."""
    compile_with(monkeypatch, "eager")


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(torch, "compile", partial(_COMPILE, backend=backend))


_COMPILE = torch.compile


def scorer_of(folder: Path, kind: str = "llama", dtype: str = "float32") -> Scorer:
    return Scorer(ModelPool("cpu").causal_lm(save_model(folder, kind), dtype), batch_tokens=400)


def hastened(scorer: Scorer) -> bool:
    """As on a GPU in half precision."""
    assert hasten(scorer.trunk, scorer.trunk.layers, lambda: read_once(scorer.trunk))
    return can_pack(scorer.trunk)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def plain_and_packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Scorer]:
    """One model twice, the second traced as for the GPU, but run by torch's own kernels."""
    torch._dynamo.reset()
    folder = tmp_path_factory.mktemp("llama")
    plain, other = (scorer_of(folder, dtype=request.param) for _ in range(2))
    with pytest.MonkeyPatch.context() as patched:
        compile_with(patched, "aot_eager" if request.param == "float32" else "eager")
        other.packs = hastened(other)
    assert other.packs
    return plain, other


def test_packed_passes_give_the_hidden_states_of_padded_ones(plain_and_packed: tuple[Scorer, Scorer]) -> None:
    """Rows in any order, some left out, some with columns that were dropped; the store grows twice."""
    plain, other = plain_and_packed
    most = 1e-5 if plain.head.weight.dtype == torch.float32 else 0.03
    steps = [
        (np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0]), np.array([9, 1, 130, 40])),
        (np.array([1, 3]), np.array([1, 0]), np.array([20, 2])),
        (np.array([2, 0, 1]), np.array([90, 9, 21]), np.array([40, 30, 5])),
    ]
    ids = [torch.randint(1, 400, (int(counts.sum()),)) for _, _, counts in steps]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def read(passes: Any) -> list[torch.Tensor]:
        found = []
        for number, ((rows, cached, counts), some) in enumerate(zip(steps, ids, strict=True)):
            if number == 2:
                passes.drop(2, 5, 15, 100)
            found.append(passes.run(rows, some, cached, counts).float())
        return found

    with torch.inference_mode():
        expected = read(plain.passes(4))
        found = read(PackedPasses(other.trunk, 4, other.window))
        for one, another in zip(found, expected, strict=True):
            assert float((one - another).norm() / another.norm()) < most
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


def test_streams_are_ranked_alike(plain_and_packed: tuple[Scorer, Scorer]) -> None:
    plain, other = plain_and_packed
    streams = [stream(length, seed, start) for seed, (length, start) in enumerate(LENGTHS)]
    found, expected = (rank(scorer, streams, 30, lambda tokens: None) for scorer in (other, plain))
    for one, another in zip(found, expected, strict=True):
        if plain.head.weight.dtype == torch.float32:
            np.testing.assert_allclose(one, another, atol=1e-4)
        else:  # near ties fall otherwise
            assert np.mean((one > 0) == (another > 0)) > 0.9


def test_whole_texts_are_read_alike(plain_and_packed: tuple[Scorer, Scorer]) -> None:
    """Texts of one token and passes of one text among them."""
    most = 1e-4 if plain_and_packed[0].head.weight.dtype == torch.float32 else 0.5
    texts = [np.random.default_rng(length).integers(1, 400, length) for length in (9, 300, 2, 41, 130, 1, 40)]
    losses = [mean_losses(scorer, [Text(ids) for ids in texts], lambda tokens: None) for scorer in plain_and_packed]
    nats = [surprisals(scorer, texts) for scorer in plain_and_packed]
    np.testing.assert_allclose(losses[1], losses[0], atol=most)
    for one, another in zip(*nats, strict=True):
        np.testing.assert_allclose(one, another, atol=most)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers_read_alike(tmp_path: Path, kind: str) -> None:
    """MPNet's attention has a bias, and stays as it is."""
    scorer = Classifier(ModelPool("cpu").token_classifier(save_classifier(tmp_path, kind)), 400)
    texts = [np.random.default_rng(length).integers(5, 90, length) for length in (9, 300, 0, 41, 130, 40)]
    expected = scorer.keep(texts)
    scorer.packs = hastened_classifier(scorer.model)
    assert scorer.packs == (kind != "mpnet")
    for one, other in zip(scorer.keep(texts), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_packed_needs_no_look_at_its_positions(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own would wait for the device; windows and masks stay as they are."""
    scorer = scorer_of(tmp_path, kind)
    texts = [np.random.default_rng(length).integers(1, 400, length) for length in (90, 9, 41)]
    expected = surprisals(scorer, texts)
    assert hasten(scorer.trunk, scorer.trunk.layers, lambda: read_once(scorer.trunk))
    scorer._compiled = True
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", None)
    for one, other in zip(surprisals(scorer, texts), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"llama"}))
def test_what_attends_in_ways_of_its_own_is_not_packed(tmp_path: Path, kind: str) -> None:
    scorer = scorer_of(tmp_path, kind)
    assert not hastened(scorer)
    assert scorer.trunk.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fault", ["fails", "lies"])
def test_a_kernel_that_fails_or_lies_is_not_used(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(query: torch.Tensor, *_: Any) -> torch.Tensor:
        if fault == "fails":
            raise RuntimeError("no kernel image")
        return query * 2

    scorer = scorer_of(tmp_path)
    with torch.inference_mode():
        expected = scorer.trunk(input_ids=torch.arange(40)[None], use_cache=False).last_hidden_state
    monkeypatch.setattr(packed, "attend", broken)
    assert not hastened(scorer)
    assert "the model runs with padding" in caplog.text
    with torch.inference_mode():
        found = scorer.trunk(input_ids=torch.arange(40)[None], use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected)
