"""Drafters of another vocabulary draft what both have tokens for, and change no answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_drafting import SAMPLED, generate, said
from tiny_models import save_tiny_llama, save_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from pipeline.generation.token_texts import shared, texts_of
from pipeline.generation.vocabularies import translation
from pipeline.models import LoadedModel, ModelError, ModelPool, load_tokenizer
from pipeline.stages import check
from schemas.job import JobSpec


@pytest.fixture(scope="module")
def target(models: dict[str, Path]) -> LoadedModel:
    return ModelPool("cpu").causal_lm(str(models["llama"]))


def shuffled(source: Path, folder: Path) -> Path:
    """The same model with its tokens in another order."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    order = np.random.default_rng(0).permutation(len(vocabulary))  # old number -> new one
    content["model"]["vocab"] = {token: int(order[number]) for token, number in vocabulary.items()}
    for token in content["added_tokens"]:
        token["id"] = int(order[token["id"]])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.empty_like(tensors[name]).index_copy_(0, torch.from_numpy(order), tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def smaller(folder: Path) -> Path:
    """A model of fewer, shorter tokens."""
    save_tiny_llama(folder)
    (tensors,) = [load_file(folder / "model.safetensors")]
    size = save_tokenizer(folder, vocabulary=500)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:size].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("plan", [{"draft_tokens": 0}, {"draft_tokens": 3, "draft_rounds": (2,), "draft_tail": 2}])
def test_tokens_in_another_order_draft_just_the_same(
    target: LoadedModel, models: dict[str, Path], tmp_path: Path, plan: dict[str, Any], settings: dict[str, Any]
) -> None:
    other = ModelPool("cpu").causal_lm(str(shuffled(models["llama"], tmp_path / "other")))
    alike, found = (generate(target, [one], **plan, **settings) for one in (target, other))
    assert said(found) == said(alike) == said(generate(target, **settings))
    assert [one.passes for one in found] == [one.passes for one in alike]
    assert sum(len(one.tokens) - one.passes for one in found) > 20


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_fewer_tokens_change_no_answer(target: LoadedModel, tmp_path: Path, settings: dict[str, Any]) -> None:
    other = ModelPool("cpu").causal_lm(str(smaller(tmp_path / "smaller")))
    plan = {"draft_tokens": 2, "draft_rounds": (2,), "draft_lenience": 2.0}
    assert said(generate(target, [other], **plan, **settings)) == said(generate(target, **settings))


def test_what_a_drafter_lacks_it_reads_as_the_last_piece_and_never_says(target: LoadedModel, tmp_path: Path) -> None:
    other = ModelPool("cpu").causal_lm(str(smaller(tmp_path / "smaller")))
    made = translation(other, target)
    assert made is not None and made is translation(other, target)
    common = shared(other.tokenizer, target.tokenizer)
    texts = {number: text for text, number in texts_of(target.tokenizer).items()}
    assert 400 < len(common) < len(texts) == len(target.tokenizer)
    for number, text in texts.items():
        own = int(made.reads[number])
        assert common.get(number, own) == own
        if number not in common and text.isascii():
            assert text.decode().endswith(other.tokenizer.decode([own]))
    logits = torch.randn(3, len(other.tokenizer))
    said_of = made.said(logits)
    assert said_of.shape == (3, len(target.tokenizer))
    assert all(torch.equal(said_of[:, number], logits[:, own]) for number, own in common.items())
    assert said_of.isinf().sum() == 3 * (len(texts) - len(common))


def test_a_vocabulary_of_pieces_and_one_of_bytes() -> None:
    pieces = {"<unk>": 0, "▁the": 1, "the": 2, "<0x0A>": 3, "▁": 4, "é": 5}
    bytewise = {"Ġthe": 0, "Ċ": 1, "Ã©": 2, "Ã": 3, "<unk>": 4}
    one, two = Tokenizer(BPE(pieces, [])), Tokenizer(BPE(bytewise, []))
    one.decoder, two.decoder = decoders.Metaspace(), decoders.ByteLevel()
    two.pre_tokenizer = pre_tokenizers.ByteLevel()
    drafter, target = (PreTrainedTokenizerFast(tokenizer_object=each) for each in (one, two))
    assert shared(drafter, target) == {0: 1, 1: 3, 2: 5, 4: 0}
    drafter.add_special_tokens({"eos_token": "</s>"})
    target.add_special_tokens({"eos_token": "<|im_end|>"})
    assert shared(drafter, target) == {0: 1, 1: 3, 2: 5, 4: 0, 5: 6}  # a text ends for both


def test_of_several_tokens_for_one_text_the_written_one_is_taken() -> None:
    """Vocabularies of pieces have each letter as a byte, too, which no target says."""
    pieces = {"<unk>": 0, "▁": 1, **{f"<0x{ord(one):02X}>": 2 + place for place, one in enumerate("0123456789")}}
    pieces |= {one: 12 + place for place, one in enumerate("0123456789")}
    inner = Tokenizer(BPE(pieces, []))
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert shared(tokenizer, tokenizer) == {number: number for number in (0, 1, *range(12, 22))}


def with_a_gap(content: dict[str, Any]) -> int:
    """A tokenizer that leaves out a number, which it gives; its last token is behind the number of its tokens then."""
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    left_out = max((token for token in vocabulary if not token.startswith("<|")), key=len)
    content["model"]["merges"] = [pair for pair in merges if "".join(pair) != left_out]
    return int(vocabulary.pop(left_out))


def with_one_more(content: dict[str, Any]) -> int:
    """One that has a token for which its model has no place."""
    size = len(content["model"]["vocab"])
    content["added_tokens"].append({**content["added_tokens"][0], "id": size, "content": "<|more|>"})
    return size


@pytest.mark.parametrize("change", [with_a_gap, with_one_more])
def test_tokenizers_whose_numbers_are_not_those_of_their_model(
    models: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], int]
) -> None:
    pool, folder = ModelPool("cpu"), shutil.copytree(models["llama"], tmp_path / "odd")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size, number = len(content["model"]["vocab"]), change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    odd, plain = (pool.causal_lm(str(one)) for one in (folder, models["llama"]))
    for drafter, target in ((plain, odd), (odd, plain)):
        made = translation(drafter, target)
        assert made is not None and made.reads.max() < size
        assert made.says.tolist() == [size if one == number else one for one in range(size)]
        assert said(generate(target, [drafter], draft_tokens=0, draft_rounds=(2,))) == said(generate(target))


def test_a_drafter_whose_tokens_say_nothing_is_refused_at_submission(models: dict[str, Path], tmp_path: Path) -> None:
    def submitted(drafter: Path) -> None:
        target, stage = {"model": str(models["llama"])}, {"kind": "generate", "drafters": [str(drafter)]}
        check(JobSpec.model_validate({"input": {"path": "x"}, "target": target, "stages": [stage]}))

    submitted(shuffled(models["llama"], tmp_path / "other"))
    shutil.copytree(models["llama"], tmp_path / "words")
    words = Tokenizer(WordLevel({"one": 0, "two": 1}, unk_token="one"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="one").save_pretrained(tmp_path / "words")
    assert texts_of(load_tokenizer(str(tmp_path / "words"))) == {}
    with pytest.raises(ModelError, match=r"cannot draft for .*: it is not known which tokens"):
        submitted(tmp_path / "words")
