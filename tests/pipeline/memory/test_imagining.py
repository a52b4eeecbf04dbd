"""Continuations that the target draws of spans: its own distribution, what it says there, and slots fitted to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding_jobs import DOCUMENTS, encoder_of, stage
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.generation.sampling import document_seed
from pipeline.memory import encoding, imagining, measure, refining
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.fit import Fit
from pipeline.memory.imagining import imagined
from pipeline.memory.measure import Measuring
from pipeline.memory.packing import unpack
from pipeline.memory.ragged import encode_spans
from pipeline.memory.readback import Readback
from pipeline.memory.refining import refined
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.models.folder import window_of
from pipeline.stages import Result, Run, Stopped
from schemas.memory import CONTINUATION, EncoderSpec, EncodeSpec

SLOTS, MANY = (6, 4, 8), 3


def test_states_are_those_behind_the_text(coder: Autoencoder, spans: list[Any]) -> None:
    """Of spans of different lengths in one pass, and each token is one that its state might say."""
    found = imagined(coder, spans, MANY)
    assert found.ids.shape == (len(spans) * MANY, CONTINUATION)
    for row, (ids, states) in enumerate(zip(found.ids, found.states, strict=True)):
        text = torch.cat([torch.from_numpy(spans[row // MANY]), ids])
        with torch.no_grad():
            expected = coder.text_states(text[None])[0, len(text) - CONTINUATION - 1 : -1]
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    assert len({tuple(one) for one in found.ids.tolist()}) == len(found.ids)


def of_kind(kind: str, **settings: Any) -> Autoencoder:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=300, intermediate_size=128, head_dim=16, **sizes, **settings)
    torch.manual_seed(0)
    return Autoencoder(AutoModelForCausalLM.from_config(config).eval(), EncoderSpec(rank=4, alpha=8.0))


@pytest.mark.parametrize(
    ("kind", "window"),
    [("mistral", {"sliding_window": 32}), ("qwen2", {"sliding_window": 32, "use_sliding_window": True})],
)
def test_windows_slide_over_what_was_read_alone(kind: str, window: dict[str, Any]) -> None:
    """Not over what fills up a short span beside a long one."""
    coder, random = of_kind(kind, **window), np.random.default_rng(0)
    spans = [random.integers(3, 300, size) for size in (80, 9, 40)]
    found = imagined(coder, spans, 2)
    for row, (ids, states) in enumerate(zip(found.ids, found.states, strict=True)):
        text = torch.cat([torch.from_numpy(spans[row // 2]), ids])
        with torch.no_grad():
            expected = coder.text_states(text[None])[0, len(text) - CONTINUATION - 1 : -1]
        torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(imagined(coder, spans[1:2], 2).ids, found.ids[2:4])


def test_what_is_drawn_follows_from_the_span_alone(coder: Autoencoder, spans: list[Any]) -> None:
    together, alone = imagined(coder, spans, MANY), imagined(coder, spans[1:2], MANY)
    assert torch.equal(together.ids[MANY : 2 * MANY], alone.ids)
    other = spans[1].copy()
    other[0] += 1
    assert not torch.equal(imagined(coder, [other], MANY).ids, alone.ids)


@torch.inference_mode()
def test_slots_say_what_follows_as_the_text_does(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearer than slots that are fitted to the spans alone, also in continuations that they were not fitted to; and the
    spans are likelier than before."""
    begun = encode_spans(coder, spans, SLOTS)
    alone, both = (refined(coder, spans, begun, Fit(16, many)) for many in (0, 8))
    known, seed = imagined(coder, spans, 8), document_seed
    monkeypatch.setattr(imagining, "document_seed", lambda number, digest: seed(number + 8, digest))
    fresh = imagined(coder, spans, 8)
    assert not torch.equal(known.ids, fresh.ids)

    def off(slots: list[torch.Tensor], what: Any) -> float:
        behind = Readback(coder, SLOTS, [*what.ids.numpy()], "LM")
        return float(behind.nats(torch.cat(slots), what.states).mean())

    def again(slots: list[torch.Tensor]) -> float:
        return float(Readback(coder, SLOTS, spans, "AE").nats(torch.cat(slots)).sum())

    for what in (known, fresh):
        assert off(both, what) < off(alone, what) - 0.05
    assert again(both) < again(begun)
    assert [one.shape for one in both] == [one.shape for one in begun]


@torch.inference_mode()
def test_each_goes_its_own_way(coder: Autoencoder, spans: list[Any]) -> None:
    begun = encode_spans(coder, spans, SLOTS)
    alone = [refined(coder, [ids], [one], Fit(6, 2))[0] for ids, one in zip(spans, begun, strict=True)]
    for one, other in zip(refined(coder, spans, begun, Fit(6, 2)), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_span_that_is_no_number_holds_nobody_up_and_none_is_sure(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = encode_spans(coder, spans, SLOTS)
    broken = [begun[0], torch.full_like(begun[1], float("nan")), begun[2]]
    made = refined(coder, spans, broken, Fit(3, 2))
    alone = refined(coder, [spans[0], spans[2]], [begun[0], begun[2]], Fit(3, 2))
    assert made[1].isnan().all()
    for one, other in zip((made[0], made[2]), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    looks: list[int] = []
    monkeypatch.setattr(refining, "SURE", 1e3)
    refined(coder, spans, begun, Fit(3, 2), lambda: looks.append(1))
    assert len(looks) == CONTINUATION + 4, "nothing is sure"

    def stop() -> None:
        raise Stopped("now")

    with pytest.raises(Stopped):
        imagined(coder, spans, 1, stop)


def test_a_model_that_keeps_nothing_is_told(
    coder: Autoencoder, spans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = coder.decoder.forward

    def forgetful(**given: Any) -> Any:
        found = forward(**given)
        found.past_key_values = None
        return found

    monkeypatch.setattr(coder.decoder, "forward", forgetful)
    with pytest.raises(ModelError, match="no key-value cache to go on from: leave them out"):
        imagined(coder, spans, 2)


def test_passes_have_room_for_continuations(
    tiny_model: Path, pool: ModelPool, coder: Autoencoder, base: LoadedModel, corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of an encode stage, and of what is measured."""
    rows: list[int] = []

    def counted(coder: Any, spans: Any, slots: Any, fit: Fit, alive: Any) -> list[torch.Tensor]:
        rows.append(len(spans))
        return list(slots)

    for module in (encoding, measure):
        monkeypatch.setattr(module, "refined", counted)
    encoder = encoder_of(tiny_model, "interleaved")
    for many, most in ((0, 99), (4, 5)):
        rows.clear()
        stage(tiny_model, encoder, refine=1, continuations=many, batch_tokens=1400).run(DOCUMENTS, Run(pool))
        windows = torch.from_numpy(corpus.windows(np.random.default_rng(3), 40, 16)).long()
        Measuring(coder, base.tokenizer, windows, ((16, 4),), 1400, half=False, fit=Fit(1, many)).measure(0)
        assert 1 < max(rows) <= most and (many or min(rows) > 5)


def test_a_stage_fits_to_both(tiny_model: Path, pool: ModelPool) -> None:
    """However its passes are packed."""
    encoder = encoder_of(tiny_model, "interleaved")
    span, other = (stage(tiny_model, encoder, refine=6, continuations=many) for many in (0, 2))
    assert other.spec.output_settings()["continuations"] == 2 and "continuations" not in span.spec.output_settings()
    assert other.work_seconds(1000) > span.work_seconds(1000)
    small = stage(tiny_model, encoder, refine=6, continuations=2, batch_tokens=200)
    found = [
        [one.slots for one in which.run(DOCUMENTS, Run(pool)) if isinstance(one, Result) and one.slots]
        for which in (span, other, small, stage(tiny_model, encoder))
    ]
    assert all(len(some) == len(found[0]) > 2 for some in found)
    for alone, both, packed, plain in zip(*found, strict=True):
        assert not torch.equal(unpack(alone), unpack(both))
        assert (unpack(both) - unpack(packed)).norm() < 0.2 * (unpack(both) - unpack(plain)).norm()


def test_settings_that_make_no_sense_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="continuations are of what refine fits slots to"):
        EncodeSpec.model_validate({"kind": "encode", "encoder": "x", "continuations": 4})
    encoder = encoder_of(tiny_model, "interleaved")
    window = window_of(tiny_model)
    assert window is not None
    fits = {"refine": 1, "span": window - CONTINUATION, "slots": 4}
    stage(tiny_model, encoder, **fits, continuations=1).check()
    long = {**fits, "span": window - CONTINUATION + 1}
    stage(tiny_model, encoder, **long).check()
    with pytest.raises(ModelError, match=r"places with a continuation, and .*: lower span, or leave continuations out"):
        stage(tiny_model, encoder, **long, continuations=1).check()
