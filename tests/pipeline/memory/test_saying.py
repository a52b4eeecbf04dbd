"""Spans and prompts of any lengths in one pass are read as each is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.head_loss import nats_of
from pipeline.memory.ragged import encode_spans
from pipeline.memory.saying import nats, written
from pipeline.models import ModelPool
from schemas.memory import EncoderSpec

LENGTHS, SLOTS = (13, 1, 7, 20), (4, 1, 7, 5)


@pytest.fixture(params=["interleaved", "appended", "pooled", "whole"])
def coder(request: Any, tiny_model: Path) -> Autoencoder:
    layout = "interleaved" if request.param == "whole" else request.param
    spec = EncoderSpec(layout=layout, rank=0 if request.param == "whole" else 4)
    torch.manual_seed(0)
    made = Autoencoder(ModelPool("cpu").own_copy(str(tiny_model)).model, spec)
    for name, one in made.trained().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(one, 0.0, 0.1)
    return made


def ids(tokens: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, tokens]).integers(3, 900, tokens)


def test_spans_are_encoded_as_they_are_alone(coder: Autoencoder) -> None:
    found = encode_spans(coder, [ids(length) for length in LENGTHS], SLOTS)
    for one, length, slots in zip(found, LENGTHS, SLOTS, strict=True):
        alone = coder.encode(torch.from_numpy(ids(length)).long()[None], slots)[0]
        torch.testing.assert_close(one, alone)


def test_answers_are_said_as_in_batches_of_one_length(coder: Autoencoder) -> None:
    """Behind slots and a tag, as pretraining has it; and as alone behind prompts of any length."""
    spans = torch.from_numpy(np.stack([ids(12, seed) for seed in range(3)])).long()
    slots, head = coder.encode(spans, 4), coder.model.get_output_embeddings().weight
    expected = nats_of(coder.states(slots, torch.full((3,), TAGS.index("AE")), spans), head, spans)
    prompts = [coder.prompt([[], []], [one], "AE") for one in slots]
    torch.testing.assert_close(torch.stack(nats(coder, prompts, spans.tolist())), expected)
    mixed = [coder.prompt([ids(n).tolist(), [7]], [slots[0]]) for n in (3, 0, 9)]
    answers = [ids(n, 5).tolist() for n in (1, 6, 2)]
    for one, prompt, answer in zip(nats(coder, mixed, answers), mixed, answers, strict=True):
        torch.testing.assert_close(one, nats(coder, [prompt], [answer])[0])


def test_what_is_written_is_what_is_likeliest_up_to_the_end(coder: Autoencoder) -> None:
    prompts = [coder.prompt([ids(n).tolist()], []) for n in (5, 2, 11)]
    with torch.no_grad():
        found = written(coder, prompts, 6, [])
        for prompt, answer in zip(prompts, found, strict=True):
            assert len(answer) == 6
            for at in range(6):
                words = torch.cat([prompt, coder.prompt([answer[:at]], [])])
                state = coder.say(words[None])[0, -1]
                assert int((coder.model.get_output_embeddings().weight @ state).argmax()) == answer[at]
        end = found[0][3]
        cut = written(coder, prompts, 6, [end])
    assert cut[0] == found[0][: found[0].index(end)] and all(end not in one for one in cut)
