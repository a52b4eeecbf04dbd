"""Slots fitted to their spans: what comes back is likelier, and no worse for any; each alone, whatever its company."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding_jobs import DOCUMENTS, encoder_of, stage

from pipeline.compression.tokens import Tokenising
from pipeline.memory import refining
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.encoder import load_encoder
from pipeline.memory.fit import Fit
from pipeline.memory.measure import Measuring, mean
from pipeline.memory.packing import unpack
from pipeline.memory.ragged import encode_spans
from pipeline.memory.readback import Readback
from pipeline.memory.refining import refined
from pipeline.memory.saying import nats
from pipeline.memory.spans import cut
from pipeline.models import LoadedModel, ModelPool, load_tokenizer
from pipeline.passes.apart import apart
from pipeline.passes.joined import join
from pipeline.stages import Result, Run, Stopped
from schemas.memory import EncoderSpec, slots_of

SLOTS = 3, 7, 6


def nats_of_each(coder: Autoencoder, spans: list[Any], slots: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        prompts = [coder.prompt([[], []], [one], "AE") for one in slots]
        return nats(coder, prompts, [ids.tolist() for ids in spans])


def said(coder: Autoencoder, spans: list[Any], slots: list[torch.Tensor]) -> list[float]:
    return [float(one.mean()) for one in nats_of_each(coder, spans, slots)]


@torch.inference_mode()
def test_all_at_once_are_said_as_one_by_one(coder: Autoencoder, spans: list[Any]) -> None:
    slots = encode_spans(coder, spans, SLOTS)
    found = Readback(coder, SLOTS, spans, "AE").nats(torch.cat(slots))
    for row, ids, one in zip(found, spans, nats_of_each(coder, spans, slots), strict=True):
        torch.testing.assert_close(row[: len(ids)], one)
        assert not row[len(ids) :].any()


@torch.inference_mode()
def test_spans_are_likelier_and_the_model_is_as_it_was(coder: Autoencoder, spans: list[Any]) -> None:
    before = {name: one.clone() for name, one in coder.state_dict().items()}
    begun = encode_spans(coder, spans, SLOTS)
    made = refined(coder, spans, begun, Fit(12))
    assert [one.shape for one in made] == [one.shape for one in begun] and made[0].dtype == begun[0].dtype
    was, now = said(coder, spans, begun), said(coder, spans, made)
    assert all(one < other - 0.2 for one, other in zip(now, was, strict=True)), (was, now)
    assert all(torch.equal(one, before[name]) for name, one in coder.state_dict().items())
    assert all(one.grad is None for one in coder.parameters())


def test_gradients_go_through_weights_that_were_laid_together(base: LoadedModel, spans: list[Any]) -> None:
    """As decoding lays them, where nothing is to be learned."""
    model = copy.deepcopy(base.model)
    before = Autoencoder(apart(model), EncoderSpec(rank=4, alpha=8.0))
    with torch.inference_mode():
        for layer in model.get_decoder().layers:
            join(layer)
    after = Autoencoder(apart(model), EncoderSpec(rank=4, alpha=8.0))
    for one in (before, after):
        begun = encode_spans(one, spans, SLOTS)
        assert sum(said(one, spans, refined(one, spans, begun, Fit(4)))) < sum(said(one, spans, begun))


@torch.inference_mode()
def test_none_is_worse_and_each_goes_its_own_way(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where steps are far too long at first."""
    begun = encode_spans(coder, spans, SLOTS)
    alone = [refined(coder, [ids], [one], Fit(6))[0] for ids, one in zip(spans, begun, strict=True)]
    for one, other in zip(refined(coder, spans, begun, Fit(6)), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    worst = [float(one.max()) for one in nats_of_each(coder, spans, alone)]
    monkeypatch.setattr(refining, "SURE", sorted(worst)[0] * 1.2)  # of one alone, before the others have ended
    alone = [refined(coder, [ids], [one], Fit(12))[0] for ids, one in zip(spans, begun, strict=True)]
    for one, other in zip(refined(coder, spans, begun, Fit(12)), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@torch.inference_mode()
def test_none_is_worse_where_steps_are_far_too_long(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From slots that are good already."""
    good = refined(coder, spans, encode_spans(coder, spans, SLOTS), Fit(20))
    monkeypatch.setattr(refining, "RATE", 100.0)
    looks: list[float] = []

    def seen(self: Readback, slots: torch.Tensor) -> torch.Tensor:
        found = plain(self, slots)
        looks.append(float(found.detach().sum()))
        return found

    plain = Readback.nats
    monkeypatch.setattr(Readback, "nats", seen)
    wild = refined(coder, spans, good, Fit(4))
    assert max(looks) > 2 * looks[0]
    for one, other in zip(wild, good, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_a_span_is_what_it_was_when_all_its_tokens_were_sure(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it may have had fewer nats in all before; and it is read no more."""
    begun = encode_spans(coder, spans, SLOTS)
    read: list[int] = []

    def counted(self: Readback, slots: torch.Tensor) -> torch.Tensor:
        read.append(len(self.lengths))
        return plain(self, slots)

    plain = Readback.nats
    monkeypatch.setattr(Readback, "nats", counted)
    for sure in (7.0, 6.0, 5.0, 4.0, 3.0):
        monkeypatch.setattr(refining, "SURE", sure)
        read.clear()
        made = refined(coder, spans, begun, Fit(40))
        worst = [float(one.max()) for one in nats_of_each(coder, spans, made)]
        ended = len(spans) - read[-1] if len(read) == 41 else len(spans)
        assert sum(one < sure + 1e-3 for one in worst) >= ended
        assert read == sorted(read, reverse=True)


@torch.inference_mode()
def test_numbers_move_as_far_as_they_differ(coder: Autoencoder, spans: list[Any]) -> None:
    begun, before = encode_spans(coder, spans, SLOTS), coder.typical.clone()
    coder.typical[1, 5] *= 100
    try:
        made = refined(coder, spans, begun, Fit(1))
    finally:
        coder.typical.copy_(before)
    moved = torch.cat([(one - other).abs() for one, other in zip(made, begun, strict=True)]).mean(0) / before[1]
    assert moved[5] > 20 * moved[:5].max()


@torch.inference_mode()
def test_slots_that_are_no_numbers_come_back_and_hold_nobody_up(coder: Autoencoder, spans: list[Any]) -> None:
    begun = encode_spans(coder, spans, SLOTS)
    broken = [begun[0], torch.full_like(begun[1], float("nan")), begun[2]]
    looks: list[int] = []
    made = refined(coder, spans, broken, Fit(6), lambda: looks.append(1))
    alone = refined(coder, [spans[0], spans[2]], [begun[0], begun[2]], Fit(6))
    assert made[1].isnan().all() and len(looks) == 7
    for one, other in zip((made[0], made[2]), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert refined(coder, [], [], Fit(3)) == []
    assert refined(coder, spans[1:2], broken[1:2], Fit(6), lambda: looks.append(1))[0].isnan().all() and len(looks) == 8


@torch.inference_mode()
def test_it_ends_when_every_token_is_sure(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, looks = encode_spans(coder, spans, SLOTS), list[int]()
    refined(coder, spans, begun, Fit(3), lambda: looks.append(1))
    assert len(looks) == 4  # each step, and what came of the last
    monkeypatch.setattr(refining, "SURE", 1e3)
    for one, other in zip(refined(coder, spans, begun, Fit(3), lambda: looks.append(1)), begun, strict=True):
        assert torch.equal(one, other)
    assert len(looks) == 5

    def stop() -> None:
        raise Stopped("now")

    with pytest.raises(Stopped):
        refined(coder, spans, begun, Fit(3), stop)


@torch.inference_mode()
def test_what_is_measured_is_fitted_too(coder: Autoencoder, base: LoadedModel, corpus: Corpus) -> None:
    rows = torch.from_numpy(corpus.windows(np.random.default_rng(3), 4, 24)).long()
    measuring = Measuring(coder, base.tokenizer, rows, ((16, 8), (8, 4)), 256, half=False)
    assert mean(replace(measuring, fit=Fit(8)).measure(0)).nats < mean(measuring.measure(0)).nats - 0.2


def test_a_stage_fits_what_it_stores(tiny_model: Path, pool: ModelPool) -> None:
    encoder = encoder_of(tiny_model, "interleaved")
    plain, fitted = (stage(tiny_model, encoder, refine=steps) for steps in (0, 4))
    assert "refine" not in plain.spec.output_settings() and fitted.spec.output_settings()["refine"] == 4
    assert fitted.work_seconds(1000) > plain.work_seconds(1000)
    both = [one.run(DOCUMENTS, Run(pool)) for one in (plain, fitted)]
    for one, other in zip(*both, strict=True):
        assert isinstance(one, Result) and isinstance(other, Result) and one.slots and other.slots
        assert one.fields["slots"] == other.fields["slots"]
        assert not torch.equal(unpack(one.slots), unpack(other.slots))
    coder, tokeniser = load_encoder(str(encoder), pool), Tokenising(load_tokenizer(str(tiny_model)))
    for document, *two in zip(DOCUMENTS[:3], *both, strict=False):
        (ids,) = tokeniser.tokenise(document.parts.contexts[:1])
        first = [ids.ids[: cut(len(ids.ids), 16)[0]]]
        slots = [
            unpack(one.slots)[: slots_of(len(first[0]), 4.0)] for one in two if isinstance(one, Result) and one.slots
        ]
        was, now = (said(coder, first, [some])[0] for some in slots)
        assert now < was
    again = fitted.run(DOCUMENTS, Run(pool))
    assert [one.slots.sha256("") for one in again if isinstance(one, Result) and one.slots] == [
        one.slots.sha256("") for one in both[1] if isinstance(one, Result) and one.slots
    ]
