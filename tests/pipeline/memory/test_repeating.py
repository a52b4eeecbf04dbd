"""Texts through stored slots and back: each as if it were alone, in figures that hold, and shown word by word."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_models import lines, save_tiny_encoder

from pipeline.memory.display import marked, print_repetitions
from pipeline.memory.encode_stage import Encode
from pipeline.memory.packing import pack, unpack
from pipeline.memory.reconstruct import reconstructed
from pipeline.memory.repeating import Repetition, repeat
from pipeline.memory.resident import resident
from pipeline.memory.spans import spans_of
from pipeline.models import ModelError, ModelPool
from schemas.job import TargetSpec
from schemas.memory import EncodeSpec

TEXTS = [lines()[3], lines()[5] + " " + lines()[6], lines()[7][:20]]


def stage(folder: Path, tiny_model: Path, **said: object) -> Encode:
    encoder = save_tiny_encoder(folder, tiny_model)
    spec = EncodeSpec.model_validate({"kind": "encode", "encoder": str(encoder), "span": 12, **said})
    return Encode(spec, TargetSpec(model=str(tiny_model)))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_texts_of_any_length_come_back_as_each_does_alone(
    precision: str, tiny_model: Path, pool: ModelPool, tmp_path: Path
) -> None:
    encode, asked = stage(tmp_path / "encoder", tiny_model, precision=precision), []
    found = repeat(encode, TEXTS, pool, lambda: asked.append(1))
    assert asked
    folder, manifest = encode.found()
    there = resident(folder, manifest, str(tiny_model), "float32", "auto", pool)
    bytes_ = {"float16": 64 * 2, "int8": 64 + 2}[precision]
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor(there.base.tokenizer.encode(text, add_special_tokens=False))
        written: list[int] = []
        for span in spans_of(ids.numpy(), 12):
            with torch.inference_mode():
                slots = there.coder.encode(torch.from_numpy(span)[None], -(-len(span) // 4))
            stored = unpack(pack(slots[0], there.coder.common, encode.spec.precision, 64))
            written += reconstructed(there.coder, stored[None], len(span))[0].tolist()
        assert one.found == there.base.tokenizer.decode(written)
        assert (one.tokens, one.spans, one.bytes) == (len(ids), -(-len(ids) // 12), one.slots * bytes_)
        wrong = [place for place, token in enumerate(ids.tolist()) if token != written[place]]
        assert one.prefix == (wrong[0] if wrong else len(ids)) / len(ids)
        assert one.bleu4 is not None and 0 <= one.bleu4 < 1


def test_slots_that_are_no_numbers_are_said_to_be(tiny_model: Path, tmp_path: Path) -> None:
    encode, pool = stage(tmp_path / "encoder", tiny_model), ModelPool("cpu")
    folder, manifest = encode.found()
    coder = resident(folder, manifest, str(tiny_model), "float32", "auto", pool).coder
    coder.map.weight.data[:] = float("nan")
    with pytest.raises(ModelError, match="no numbers"):
        repeat(encode, TEXTS[:1], pool, lambda: None)
    pool.close()


def test_a_text_that_is_shown_in_part_is_compared_whole() -> None:
    """Else what is left out shifts right words to the border, and they are marked, one of them in half."""
    words = [f"word{number}" for number in range(40)]
    one = Repetition(" ".join(words), " ".join(words[3:]), 40, 1, 10, 100, None, 0.0)
    console = Console(record=True, width=400, file=io.StringIO())
    print_repetitions([one], ["texts.jsonl:7"], console, 100)
    said = console.export_text()
    assert "texts.jsonl:7" in said and said.count("[") == said.count("[-word0 word1 word2-] word3 word4") == 1


def test_what_is_not_the_texts_is_marked() -> None:
    assert marked("the old man and the sea", "the young man and  sea", False).plain == "the [young] man and [-the-] sea"
    assert marked("one two", "one two", False).plain == "one two"
    assert marked("one two three", "one three", False).plain == "one [-two-] three"
    assert marked("one two", "", False).plain == "[-one two-]"
    lost = marked("one two three", "one three", True)
    assert lost.plain == "one two three" and "strike" in str(lost.spans[0].style)
    shown = marked("one two three", "one 2 three", True)
    assert shown.plain == "one 2 three" and [shown.plain[one.start : one.end] for one in shown.spans] == ["2"]
