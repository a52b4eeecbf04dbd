"""Logits behind a vocabulary head are read by our kernel where it says what torch says, and by torch anywhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import written_out
from compress_models import save_model

from pipeline.compression import scoring
from pipeline.compression.reading import surprisals
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool
from pipeline.passes.heads import nats, reads_logits_once

TEXTS = [np.random.default_rng(length).integers(1, 400, length) for length in (2, 90, 17, 1, 64)]


@pytest.fixture
def head() -> Any:
    """Far surer of a token itself than of any other, as heads are that are the embeddings, too."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    torch.manual_seed(0)
    made = torch.nn.Linear(16, 300, bias=False).requires_grad_(False)
    made.weight.mul_(30)
    return made


def of_kernel(patched: pytest.MonkeyPatch, kernel: Any) -> list[int]:
    """Rows of its calls."""
    from pipeline.passes import surprisal

    calls: list[int] = []

    def called(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(logits))
        found: torch.Tensor = kernel(logits, *rest)
        return found

    patched.setattr(surprisal, "surprisal", called)
    return calls


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_scores_by_the_kernel_are_those_of_torch(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With and without a cap, in pieces; tried once, with one call, however many scorers a model has."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    loaded = ModelPool("cpu").causal_lm(save_model(tmp_path, kind))
    scorer = Scorer(loaded, batch_tokens=400)
    expected = surprisals(scorer, TEXTS)
    calls = of_kernel(monkeypatch, written_out.surprisal)
    for one in (scorer, Scorer(loaded, batch_tokens=400)):
        assert reads_logits_once(one.head, one._softcap)
    assert len(calls) == 1 and not caplog.records
    monkeypatch.setitem(scoring._LOGITS, "cpu", 2000)
    for found, other in zip(surprisals(scorer, TEXTS), expected, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-5)
    assert len(calls) > 10 and max(calls[1:]) <= 4


@pytest.mark.parametrize("fault", ["no Triton", "no GPU", "lies", "no number"])
def test_a_kernel_that_fails_or_lies_is_not_used(
    head: Any, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is said once why."""
    hidden, targets = torch.randn(5, 16), torch.arange(5)
    expected = nats(head, hidden, targets)
    if fault == "no Triton":
        import pipeline.passes

        monkeypatch.delattr(pipeline.passes, "surprisal", raising=False)
        monkeypatch.delitem(sys.modules, "pipeline.passes.surprisal", raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)
    elif fault == "lies":
        of_kernel(monkeypatch, lambda logits, *rest: written_out.surprisal(logits, *rest) * 1.001)
    elif fault == "no number":
        of_kernel(monkeypatch, lambda logits, *rest: torch.full((len(logits),), torch.nan))
    for _ in range(2):
        assert not reads_logits_once(head)
    assert len(caplog.records) == 1 and "torch turns logits into nats" in caplog.text
    assert torch.equal(nats(head, hidden, targets), expected)
