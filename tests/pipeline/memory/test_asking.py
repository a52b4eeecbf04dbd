"""Where slots stand in a prompt: inside the frame that the target's own template makes, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.generation.prompts import PromptEncoder
from pipeline.memory.asking import SLOTS, Piece, answered, asked, end_of_turn
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Refusal
from schemas.document import PromptParts
from schemas.memory import EncoderSpec
from schemas.stage import GenerateSpec

BEGIN, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def encoder(base: LoadedModel, **settings: object) -> PromptEncoder:
    return PromptEncoder(
        "tiny", base.tokenizer, base.window, GenerateSpec.model_validate({"kind": "generate", **settings})
    )


@pytest.mark.parametrize(
    ("pieces", "runs"),
    [
        ([SLOTS, "Who?"], [BEGIN, "Who?" + END]),
        (["Answer.", SLOTS, SLOTS, "Who?"], [BEGIN + "Answer.\n\n", "", "Who?" + END]),
        (["", SLOTS, ""], [BEGIN, END]),
        ([SLOTS, "a text", SLOTS, "more", "Who?"], [BEGIN, "\n\na text\n\n", "more\n\nWho?" + END]),
        (["XSLOTS0X is a word", SLOTS], [BEGIN + "XSLOTS0X is a word\n\n", END]),
    ],
)
def test_slots_stand_where_their_text_would(base: LoadedModel, pieces: list[Piece], runs: list[str]) -> None:
    found = asked(encoder(base), pieces)
    assert not isinstance(found, Refusal)
    assert [base.tokenizer.decode(one) for one in found] == runs


@pytest.mark.parametrize("chat", [True, False])
def test_without_slots_it_is_what_a_text_is_asked(base: LoadedModel, chat: bool) -> None:
    parts = PromptParts("Answer.", ("One context.", "Another."), "Who?")
    told = encoder(base, chat=chat)
    assert asked(told, [parts.instruction, *parts.contexts, parts.question]) == told.encode([parts.render()])


def test_without_a_template_an_answer_is_a_part_more(base: LoadedModel) -> None:
    plain = encoder(base, chat=False)
    runs = asked(plain, [SLOTS, "Who?"])
    assert not isinstance(runs, Refusal) and [base.tokenizer.decode(one) for one in runs] == ["", "Who?"]
    assert base.tokenizer.decode(answered(plain, "Janet", end_of_turn(plain))) == "\n\nJanet<|im_end|>"
    framed = encoder(base)
    assert base.tokenizer.decode(answered(framed, "Janet", end_of_turn(framed))) == "Janet<|im_end|>"


def test_a_template_that_changes_what_it_is_given_is_refused(base: LoadedModel) -> None:
    kept = base.tokenizer.chat_template
    try:
        base.tokenizer.chat_template = "{{ messages[0]['content'] | lower }}"
        found = asked(encoder(base), [SLOTS, "Who?"])
    finally:
        base.tokenizer.chat_template = kept
    assert isinstance(found, Refusal) and found.code == "chat_template"


def test_what_the_decoder_reads_is_runs_and_slots_in_turn(tiny_model: Path) -> None:
    coder = Autoencoder(ModelPool("cpu").own_copy(str(tiny_model)).model, EncoderSpec(rank=4))
    blocks = [torch.full((2, 64), 1.0), torch.full((3, 64), 2.0)]
    found = coder.prompt([[5, 6], [], [7]], blocks)
    words = coder.embed(torch.tensor([5, 6, 7]))
    expected = [words[:2], *blocks, coder.tags[TAGS.index("FT")][None], words[2:]]
    torch.testing.assert_close(found, torch.cat(expected))
    torch.testing.assert_close(coder.prompt([[5, 6, 7]], []), words)
