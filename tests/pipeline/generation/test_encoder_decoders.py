"""Encoder-decoders against transformers' own unbatched ``generate``, on small random models."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tokenizer
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from pipeline.generation import local
from pipeline.generation.decoding import passes_for
from pipeline.generation.early_exit import early_exit
from pipeline.generation.generated import no_defaults
from pipeline.generation.lines import Lines
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.passes import encoded
from pipeline.passes.encoded import EncodedPasses
from pipeline.stages import Outcome, Refusal, Result, Run, build, check
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import GenerateSpec

WINDOW = 160
NEW = 40
T5 = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "n_positions": WINDOW,
    "initializer_factor": 3.0, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "init_std": 0.25,
    "max_position_embeddings": WINDOW, "decoder_start_token_id": 2, "bos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": {**T5, "tie_word_embeddings": False, "relative_attention_num_buckets": 8},
    "bart": BART,
    "blenderbot": BART,
    "m2m_100": BART,  # reckons positions out by itself: by ``generate``
}
CARRIED = ["t5", "mt5", "bart", "blenderbot"]
LESS = {"encoder_attn.out_proj": 0.1, "fc2": 0.1, "embed_positions": 3.0}
"""Else a random BART says one token over and over."""

PROMPTS = [
    Prompt(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist(), NEW, length)
    for length in (41, 5, 120, 1, 60, 9, 9, 97, 23)
]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


def save(folder: Path, name: str) -> Path:
    vocabulary = save_tokenizer(folder)
    config = AutoConfig.for_model(name, vocab_size=vocabulary, pad_token_id=0, eos_token_id=2, **MODELS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForSeq2SeqLM.from_config(config)
        for key, weight in model.get_decoder().named_parameters():
            scale = next((more for part, more in LESS.items() if f"{part}.weight" in key), 1.0)
            weight.data *= scale if name == "bart" else 1.0
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name), name) for name in MODELS}


@pytest.fixture(scope="module")
def targets(folders: dict[str, Path]) -> Iterator[dict[str, LoadedModel]]:
    pool = ModelPool("cpu", limit=len(MODELS))
    yield {name: pool.target(str(folder)) for name, folder in folders.items()}
    pool.close()


def reference(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    """What transformers answers by itself, greedily."""
    model, ids, start = loaded.model, torch.tensor([prompt.ids]), loaded.start[0]
    config = GenerationConfig(
        max_new_tokens=prompt.new_tokens, eos_token_id=2, pad_token_id=0, decoder_start_token_id=start
    )
    with no_defaults(model), torch.inference_mode():  # BART's would make an answer end
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens: list[int] = made[0, 1:].tolist()
    return tokens


@pytest.fixture(scope="module")
def expected(targets: dict[str, LoadedModel]) -> dict[str, list[list[int]]]:
    return {name: [reference(loaded, prompt) for prompt in PROMPTS] for name, loaded in targets.items()}


def generate(loaded: LoadedModel, prompts: list[Prompt] = PROMPTS, **settings: Any) -> list[Generation]:
    spec = GenerateSpec(kind="generate", **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu"))).generate(prompts)


def tokens(loaded: LoadedModel, prompts: list[Prompt] = PROMPTS, **settings: Any) -> list[list[int]]:
    return [one.tokens for one in generate(loaded, prompts, **settings)]


@pytest.mark.parametrize("name", CARRIED)
def test_greedy_answers_are_those_of_transformers(
    targets: dict[str, LoadedModel], expected: dict[str, list[list[int]]], name: str
) -> None:
    loaded, right = targets[name], expected[name]
    assert passes_for(loaded) is EncodedPasses
    assert len({token for one in right for token in one}) > 50
    for rows in range(1, len(PROMPTS) + 1):
        assert tokens(loaded, PROMPTS[:rows]) == right[:rows]
        assert tokens(loaded, PROMPTS[-rows:], draft_tokens=7) == right[-rows:]
    assert tokens(loaded, batch_tokens=1) == right


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("drafts", [1, 3, 31, "auto"])
def test_drafts_change_no_answer(
    targets: dict[str, LoadedModel], expected: dict[str, list[list[int]]], name: str, drafts: int | str
) -> None:
    for batch_tokens in (1, 300, 16384):
        found = generate(targets[name], draft_tokens=drafts, batch_tokens=batch_tokens)
        assert [one.tokens for one in found] == expected[name]
        if drafts != "auto":  # which may find that none pays
            assert sum(one.passes for one in found) < sum(map(len, expected[name]))  # circles: some drafts pass


@pytest.mark.parametrize("name", CARRIED)
def test_samples_belong_to_their_document(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the batch, whatever is drafted, and whoever decodes."""
    loaded = targets[name]
    together = tokens(loaded, **SAMPLED)
    assert tokens(loaded, PROMPTS[::-1], **SAMPLED)[::-1] == together
    assert tokens(loaded, batch_tokens=1, **SAMPLED) == together
    assert tokens(loaded, draft_tokens=7, batch_tokens=300, **SAMPLED) == together
    others = [Prompt(one.ids, one.new_tokens, one.seed + 1) for one in PROMPTS]
    assert tokens(loaded, others, **SAMPLED) != together
    monkeypatch.setattr(local, "passes_for", lambda loaded: None)
    assert tokens(loaded, **SAMPLED) == together


@pytest.mark.parametrize("name", MODELS)
def test_generate_says_the_same_in_a_batch(
    targets: dict[str, LoadedModel], expected: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An encoder's texts are padded on the right: BART counts places from the first."""
    monkeypatch.setattr(local, "passes_for", lambda loaded: None)
    assert tokens(targets[name]) == expected[name]


def test_what_cannot_be_carried_is_left_to_generate(
    targets: dict[str, LoadedModel], expected: dict[str, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    vars(targets["m2m_100"].model).pop("contextmill_passes", None)
    with caplog.at_level(logging.WARNING):
        assert tokens(targets["m2m_100"], draft_tokens=3) == expected["m2m_100"]
    assert "by transformers' generate, at a fraction of the speed" in caplog.text
    assert "hence without drafts" in caplog.text


@pytest.mark.parametrize(("name", "what"), [("t5", "_bias"), ("bart", "_embedded")])
def test_positions_that_are_not_the_rows_own_are_noticed(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    right = getattr(encoded, what)

    def wrong(one: Any, positions: torch.Tensor, *args: Any, **options: Any) -> Any:
        return right(one, positions[:1].expand_as(positions), *args, **options)

    monkeypatch.setattr(encoded, what, wrong)
    assert passes_for(ModelPool("cpu").target(str(folders[name]))) is None


def test_the_prompt_is_there_to_copy_from(targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    begin = Lines.begin

    def spied(self: Lines, slots: Any, seeds: Any, copied: Any, prompts: Any, *rest: Any) -> None:
        seen.extend([*some.tolist(), *text.tolist()] for some, text in zip(copied, prompts, strict=True))
        begin(self, slots, seeds, copied, prompts, *rest)

    monkeypatch.setattr(Lines, "begin", spied)
    generate(targets["t5"], [Prompt([7, 8, 9], 5, copied=[5, 6])], draft_tokens=3)
    assert seen == [[5, 6, 7, 8, 9, 0]]  # the original of a compressed prompt, the prompt, what the decoder begins with


@pytest.mark.parametrize("name", ["t5", "bart", "m2m_100"])
def test_encoders_read_vectors_among_tokens(targets: dict[str, LoadedModel], name: str) -> None:
    """In batches with plain prompts, by our own passes and by ``generate``."""
    loaded, drawn = targets[name], torch.Generator().manual_seed(0)
    model: Any = loaded.model
    table = model.get_encoder().get_input_embeddings()
    pieces: list[list[list[int] | torch.Tensor]] = [
        [one.ids[:4], torch.randn(place, 64, generator=drawn), one.ids[4:]] for place, one in enumerate(PROMPTS)
    ]
    prompts = [Prompt.of(one, NEW, seed) for seed, one in enumerate(pieces)]
    right = []
    config = {"eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": loaded.start[0]}
    with no_defaults(model), torch.inference_mode():
        for one in pieces:
            words = torch.cat(
                [some if isinstance(some, torch.Tensor) else table(torch.tensor(some)) for some in one if len(some)]
            )
            made = model.generate(
                inputs_embeds=words[None], attention_mask=torch.ones(1, len(words), dtype=torch.int64),
                generation_config=GenerationConfig(max_new_tokens=NEW, **config),
            )  # fmt: skip
            right.append(made[0, 1:].tolist())
    for settings in ({}, {"draft_tokens": 7}, {"batch_tokens": 300, "draft_tokens": 3}):
        assert tokens(loaded, prompts, **settings) == right
    assert right != [reference(loaded, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("name", CARRIED)
def test_passes_as_wide_as_a_gpu_wants_them_change_no_answer(
    targets: dict[str, LoadedModel], expected: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(EncodedPasses, "round", lambda self, columns: -(-columns // 8) * 8)
    assert tokens(targets[name], draft_tokens=3) == expected[name]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_in_half_precision(targets: dict[str, LoadedModel], folders: dict[str, Path], name: str) -> None:
    loaded = ModelPool("cpu").target(str(folders[name]), "bfloat16")
    assert passes_for(loaded) is EncodedPasses
    found = generate(loaded, draft_tokens=3)
    assert all(0 < len(one.tokens) <= NEW for one in found)


@pytest.mark.parametrize("settings", [{}, {"draft_tokens": 7}])
def test_a_stop_string_ends_its_row_alone(targets: dict[str, LoadedModel], settings: dict[str, Any]) -> None:
    free = generate(targets["t5"])
    stop = next(free[0].text[at : at + 3] for at in range(4, 40) if "\ufffd" not in free[0].text[at : at + 3])
    for one, whole in zip(generate(targets["t5"], stop=(stop,), **settings), free, strict=True):
        assert one.text == whole.text.split(stop)[0]
        assert one.finish_reason == ("stop" if stop in whole.text else whole.finish_reason)


def run_stage(folder: Path, texts: list[str], **settings: Any) -> list[Outcome]:
    parts = [PromptParts(contexts=(text,)) for text in texts]
    documents = [Document(seq, str(seq), one, one.content_hash()) for seq, one in enumerate(parts)]
    return build(job(folder, **settings), 0).run(documents, Run(ModelPool("cpu")))


def job(folder: Path, **settings: Any) -> JobSpec:
    stage = {"kind": "generate", "chat": False, **settings}
    return JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": str(folder)}, "stages": [stage]})


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("settings", [{}, {"draft_tokens": 15}])
def test_prompt_and_answer_have_a_window_each(
    folders: dict[str, Path], targets: dict[str, LoadedModel], name: str, settings: dict[str, Any]
) -> None:
    texts = [" 7" * (WINDOW - 1), " 7" * WINDOW, "How many?", ""]
    long, refused, short, empty = run_stage(folders[name], texts, max_new_tokens=1000, **settings)
    assert isinstance(refused, Refusal) and refused.code == "prompt_too_long"
    assert isinstance(empty, Refusal) and empty.code == "empty"
    for text, outcome in ((texts[0], long), (texts[2], short)):
        assert isinstance(outcome, Result)
        ids = targets[name].tokenizer(text)["input_ids"]
        made = reference(targets[name], Prompt(ids, WINDOW))
        assert (outcome.fields["tokens_prompt"], outcome.fields["tokens_generated"]) == (len(ids), len(made))
        assert outcome.fields["generated"] == targets[name].tokenizer.decode(made, skip_special_tokens=True)


def test_what_drafts_is_a_causal_lm_for_a_causal_lm(folders: dict[str, Path], models: dict[str, Path]) -> None:
    for drafter in (str(models["llama"]), str(folders["t5"]), "layers:1"):
        with pytest.raises(ModelError, match="an encoder-decoder: drop drafters"):
            check(job(folders["t5"], drafters=[drafter]))
    with pytest.raises(ModelError, match="is no causal LM"):
        check(job(models["llama"], drafters=[str(folders["t5"])]))
    with pytest.raises(ModelError, match="no causal LM with all layers in one list"):
        early_exit(ModelPool("cpu").target(str(folders["bart"])), 1)


def test_a_causal_drafter_that_comes_anyhow_is_done_without(
    targets: dict[str, LoadedModel], expected: dict[str, list[list[int]]], models: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    drafter = ModelPool("cpu").causal_lm(str(models["llama"]))
    spec = GenerateSpec(kind="generate", drafters=[drafter.ref.name], draft_tokens=3)
    found = LocalGenerator(targets["t5"], spec, Run(ModelPool("cpu")), [drafter]).generate(PROMPTS)
    assert [one.tokens for one in found] == expected["t5"]
    assert "does not draft: it needs PaddedPasses, its target EncodedPasses" in caplog.text
    assert sum(one.passes for one in found) < sum(map(len, expected["t5"]))


def test_an_encoder_decoder_scores_nothing(folders: dict[str, Path]) -> None:
    pool = ModelPool("cpu")
    for load in (pool.causal_lm, pool.own_copy):
        with pytest.raises(ModelError, match="is no causal LM"):
            load(str(folders["t5"]))
    pool.target(str(folders["t5"]))
    with pytest.raises(ModelError, match="is no causal LM"):  # nor where it is resident
        pool.causal_lm(str(folders["t5"]))


def test_a_decoder_must_know_what_it_begins_with(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["t5"], tmp_path, dirs_exist_ok=True)
    for file in ("config.json", "generation_config.json"):
        stated = json.loads((tmp_path / file).read_text())
        stated.pop("decoder_start_token_id", None)
        (tmp_path / file).write_text(json.dumps(stated))
    with pytest.raises(ModelError, match="which token its decoder begins with"):
        ModelPool("cpu").target(str(tmp_path))
