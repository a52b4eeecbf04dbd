"""The making of the bundled head: labels say what was kept, training learns it, and the file is what was trained."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForTokenClassification, BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.minilm import answers
from benchmarks.minilm.evaluation import agreement, auc, best_of_each, student
from benchmarks.minilm.labels import RATES, Labelled, covered
from benchmarks.minilm.training import WINDOW, Recipe, adapt, export, train, windows
from pipeline.models import ModelPool
from pipeline.models.heads import build_classifier


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 200 words without a head, in the layout of the real one."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
    words = {special.get(number, f"w{number}"): number for number in range(200)}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def _task(rows: int, seed: int) -> Labelled:
    """Even words are kept at every rate, odd ones at none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 60, rows)
    ids = rng.integers(103, 200, lengths.sum()).astype(np.int32)
    return Labelled(ids, np.where(ids % 2 == 0, 7, 0).astype(np.uint8), lengths, rng.random(rows) < 0.2)


def test_training_learns_and_the_file_is_what_was_trained(encoder: Path, tmp_path: Path) -> None:
    data, recipe = _task(200, 0), Recipe(epochs=8, batch_tokens=1024, rank=4, embedding_rank=2, learning_rate=2e-2)
    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=2).eval()
    adapt(model, recipe)
    told: list[str] = []
    train(model, data.rows(held=False), recipe, told.append)
    assert "loss" in told[-1]
    head = export(model)
    assert all(tensor.dtype == np.float16 for tensor in head.values())
    build_classifier(encoder, save(head), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "remove", "1": "keep"}
    loaded, held = ModelPool("cpu").token_classifier(str(tmp_path)), data.rows(held=True)
    scores = student(loaded, held, 1024)
    assert all(one["auc"] > 0.95 and one["f1"] > 0.9 for one in agreement(scores, held).values())
    ids = torch.tensor([[101, *data.ids[:20].tolist(), 102]])
    expected, made = (one(input_ids=ids).logits.softmax(-1) for one in (model, loaded.model))
    torch.testing.assert_close(made, expected, atol=2e-2, rtol=0)


def test_the_same_seed_trains_the_same_head(encoder: Path) -> None:
    heads = []
    for _ in range(2):
        model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=2).eval()
        recipe = Recipe(epochs=1, batch_tokens=512, rank=2, embedding_rank=1)
        adapt(model, recipe)
        train(model, _task(40, 1), recipe, lambda line: None)
        heads.append(save(export(model)))
    assert heads[0] == heads[1]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8), st.integers(0, 5))
def test_every_token_is_in_one_row_of_an_epoch(lengths: list[int], seed: int) -> None:
    total = sum(lengths)
    data = Labelled(
        np.zeros(total, np.int32), np.zeros(total, np.uint8), np.array(lengths), np.zeros(len(lengths), bool)
    )
    begins, sizes = windows(data, np.random.default_rng(seed))
    assert sizes.max() <= WINDOW
    assert sizes.min() >= 1
    np.testing.assert_array_equal(np.sort(begins)[1:], np.cumsum(sizes[np.argsort(begins)])[:-1])
    assert sizes.sum() == total
    assert set(np.cumsum(lengths)[:-1].tolist()) <= set(begins.tolist())  # none spans two passages


@given(st.text("ab c", min_size=1, max_size=30), st.data())
def test_a_token_is_kept_if_most_of_it_is(text: str, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text))))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))).reshape(-1, 2)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)) | {0, len(text)})
    spans = np.array([[begin, end] for begin, end in pairwise(cuts)])
    expected = [2 * int(mask[begin:end].sum()) > end - begin for begin, end in spans]
    assert covered(edges, spans, len(text)).astype(bool).tolist() == expected


def test_answers_are_looked_for_in_what_is_left(tmp_path: Path, tiny: str, pool: ModelPool) -> None:
    folder = tmp_path / "squad"
    folder.mkdir()
    contexts = [{"id": f"c{n}", "title": "one", "context": f"In {1900 + n} a bridge was built here."} for n in range(5)]
    asked = [{"context_id": f"c{n}", "question": "When?", "answers": [f"{1900 + n}", "never"]} for n in range(5)]
    for name, rows in (("contexts", contexts), ("questions", asked)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"dev-v1.1.{name}.jsonl").write_text(text, encoding="utf-8")
    some = answers.squad(tmp_path, 3, seed=0)
    assert [len(one.questions) for one in some] == [5]
    methods = {"truncation": {"method": "truncation", "target": tiny}}
    found = answers.scores(some, methods, pool.causal_lm(tiny), 1024, pool)
    assert list(found) == ["whole text", "no text", *(f"truncation {rate}" for rate in RATES)]
    assert found["whole text"]["kept"] == 1
    assert found["no text"]["kept"] == 0
    assert 0 < found["truncation 0.2"]["kept"] < found["truncation 0.5"]["kept"] < 1
    assert all(one["nats"] > 0 for one in found.values())


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, wanted = np.array([float(one) for one, _ in pairs]), np.array([one for _, one in pairs])
    wins = [(a > b) + (a == b) / 2 for a in scores[wanted] for b in scores[~wanted]]
    assert auc(scores, wanted) == pytest.approx(sum(wins) / max(1, len(wins)))


def test_each_row_keeps_as_many_as_the_teacher() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.3, 0.8, 0.2])
    kept = np.array([True, False, True, False, False, True])
    chosen = best_of_each(scores, kept, np.array([3, 3]))
    assert chosen.tolist() == [False, True, True, False, True, False]
