"""What an encoder is said to be worth: by the model's own reckoning, of contexts cut as they are when encoded."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretraining_jobs import TEXTS, stage
from rich.console import Console
from tiny_models import lines

from pipeline.accounting.report import render_encoder
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.continuing import continuation
from pipeline.memory.corpus import Corpus
from pipeline.memory.display import print_evaluation
from pipeline.memory.encoder import load_encoder
from pipeline.memory.evaluated import Asked, Repeated, check
from pipeline.memory.evaluating import evaluate
from pipeline.memory.fit import Fit
from pipeline.memory.form import FORMS
from pipeline.memory.head_loss import nats_of
from pipeline.memory.kinds import Kind, kinds
from pipeline.memory.kinds import names as there_are
from pipeline.memory.measure import Measuring, encoded, mean
from pipeline.memory.packing import pack, unpack
from pipeline.models import ModelError, ModelPool, load_tokenizer
from pipeline.models.encoders import Answers, read_manifest
from pipeline.stages import Run
from pipeline.storage.readers import InputError

ASKED = Asked(tokens=(16, 24), ratios=(2.0, 4.0), span=16, rows=5, continued=8, batch_tokens=64, half=False)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    pool = ModelPool("cpu")
    stage(tiny_model).run(TEXTS, Run(pool, folder=str(folder)))
    pool.close()
    return folder / "encoder"


@pytest.fixture(scope="module")
def coder(folder: Path) -> Autoencoder:
    return load_encoder(str(folder), ModelPool("cpu"))


@pytest.fixture
def found(tiny_model: Path, tmp_path: Path) -> list[Kind]:
    (tmp_path / "prose.txt").write_text("\n".join(lines()))
    return kinds({"prose": [str(tmp_path / "prose.txt")]}, load_tokenizer(str(tiny_model)), 1024, seed=0)


def test_kinds_of_text(found: list[Kind], tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    prose, numbers, patterned, random = (one.spans(3, 20, seed=4) for one in found)
    assert [one.name for one in found] == ["prose", "numbers", "patterned", "random"]
    assert np.array_equal(patterned, (prose + 1) % 1024), "the paper's: each token the one after it"
    assert np.array_equal(random, found[3].spans(3, 20, seed=4)), "the same for the same seed"
    assert not np.isin(random, tokenizer.all_special_ids).any()
    assert all(set(tokenizer.decode(row)) <= set("0123456789. ") for row in numbers)
    longest = int(found[0].corpus.lengths.max())
    assert found[0].holds(longest) and not found[0].holds(longest + 1)


def test_a_kind_is_the_same_whichever_others_are_asked_for(found: list[Kind], tiny_model: Path, tmp_path: Path) -> None:
    """And texts that nobody asks for are not read: these are not there."""
    tokenizer = load_tokenizer(str(tiny_model))
    files = {"gone": [str(tmp_path / "gone.txt")]}
    for names in ["numbers"], ["random"], ["random", "numbers"]:
        alone = kinds(files, tokenizer, 1024, seed=0, asked=names)
        assert [one.name for one in alone] == sorted(names)
        for one in alone:
            (whole,) = (kind for kind in found if kind.name == one.name)
            assert np.array_equal(one.spans(3, 20, seed=4), whole.spans(3, 20, seed=4))
    files = {"prose": [str(tmp_path / "prose.txt")], **files}
    assert [one.name for one in kinds(files, tokenizer, 1024, seed=0, asked=["patterned", "prose"])] == [
        "prose", "patterned",
    ]  # fmt: skip
    (patterned,) = kinds(files, tokenizer, 1024, seed=0, asked=["patterned"])
    assert np.array_equal(patterned.spans(3, 20, seed=4), found[2].spans(3, 20, seed=4)), "of the first texts"
    assert there_are(["b", "a"]) == ["b", "a", "numbers", "patterned", "random"]
    assert [one.name for one in kinds({}, tokenizer, 1024, seed=0)] == there_are([]) == ["numbers", "random"]


def test_what_holds_no_text_says_why(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"prose: no row of .*bytes.txt is a text, the first: .*not UTF-8"):
        kinds({"prose": [str(tmp_path / "bytes.txt")]}, load_tokenizer(str(tiny_model)), 1024, seed=0)


def test_rows_that_are_no_texts_are_counted(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "A morning in May."}\n{"text": 7}\n{"text": "Rain."}\n')
    (prose, *_) = kinds({"prose": [str(tmp_path / "rows.jsonl")]}, load_tokenizer(str(tiny_model)), 1024, seed=0)
    assert len(prose.corpus.lengths) == 2
    assert "prose: 1 row of 3 left out, the first: " in caplog.text and "rows.jsonl:2: " in caplog.text


@torch.inference_mode()
@pytest.mark.parametrize("start", [(), (1,)])
def test_continuations_are_the_models_own(
    start: tuple[int, ...], coder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the loss that transformers computes of the same tokens, behind what any text starts with."""
    monkeypatch.setitem(coder._buffers, "start", torch.tensor(start, dtype=torch.long))
    generator = torch.Generator().manual_seed(0)
    contexts, after = (torch.randint(3, 900, (3, size), generator=generator) for size in (12, 7))
    parts = ((6, 3), (6, 2))
    for row, one in enumerate(continuation(coder, contexts, after, parts)):
        for behind, nats in ((contexts[row, :0], one.none), (contexts[row], one.full), (contexts[row, -5:], one.tail)):
            ids = torch.cat([coder.start, behind, after[row]])[None]
            labels = ids.clone()
            labels[:, : len(start) + len(behind) + 1] = -100
            assert nats == pytest.approx(float(own_loss(coder, {"input_ids": ids}, labels)), abs=1e-4)
        slots = torch.cat(
            [coder.encode(contexts[row : row + 1, :6], 3), coder.encode(contexts[row : row + 1, 6:], 2)], 1
        )
        begun = torch.cat([coder.first[None], slots, coder.tags[1][None, None], coder.embed(after[row : row + 1])], 1)
        labels = torch.cat([torch.full((8,), -100), after[row, 1:]])[None]
        assert one.slots == pytest.approx(float(own_loss(coder, {"inputs_embeds": begun}, labels)), abs=1e-4)


def own_loss(coder: Autoencoder, given: dict[str, torch.Tensor], labels: torch.Tensor) -> Any:
    assert coder.switch is not None
    with coder.switch.turned(False):
        return coder.model(**given, labels=labels).loss


def test_a_long_context_is_cut_as_it_is_when_encoded(coder: Autoencoder, found: list[Kind], tiny_model: Path) -> None:
    """And one span says what the training's own measurement says of it."""
    tokenizer = load_tokenizer(str(tiny_model))
    seen: list[tuple[int, int]] = []
    *_, made = evaluate(coder, tokenizer, found, ASKED, lambda done, total, what: seen.append((done, total)))
    assert [(one.tokens, one.slots) for one in made.repeated if one.kind == "prose"] == [
        (16, 8), (16, 4), (24, 12), (24, 6),
    ]  # fmt: skip
    assert {one.kind for one in made.continued} == {"prose"} and not made.short
    parts = 4 * 4 + 4 + 4  # what is repeated of each kind, what follows prose, seconds
    assert seen[0] == (0, parts) and seen[-1] == (parts - 1, parts) and (made.measured, made.total) == (parts, parts)
    assert all(one.kept is None or one.none > one.full for one in made.continued)
    assert all(min(one.encode, one.read_slots, one.read_text) > 0 for one in made.latencies)

    spans = torch.from_numpy(found[0].spans(5, 16, 0))
    whole = mean(Measuring(coder, tokenizer, spans, ((16, 8),), 64, half=False).measure(5))
    first = made.repeated[0]  # from slots in float16
    assert (first.nats.value, first.prefix.value) == pytest.approx((whole.nats, whole.prefix), abs=1e-3)
    assert first.bleu4 is not None and first.bleu4.low <= first.bleu4.value <= first.bleu4.high
    with torch.inference_mode():
        both = torch.cat([coder.encode(spans[:, :8], 4), coder.encode(spans[:, 8:], 4)], 1)
        torch.testing.assert_close(encoded(coder, spans, ((8, 4), (8, 4))), both)


def test_slots_are_made_once_for_all_forms(
    coder: Autoencoder, found: list[Kind], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, Fit]] = []

    def counted(coder: Any, ids: torch.Tensor, parts: Any, fit: Fit, alive: Any = None) -> torch.Tensor:
        rows.append((len(ids), fit))
        return encoded(coder, ids, parts, fit, alive or (lambda: None))

    for module in ("measure", "continuing"):
        monkeypatch.setattr(f"pipeline.memory.{module}.encoded", counted)
    forms = tuple(FORMS[name] for name in ("float16", "int8"))
    asked = replace(ASKED, tokens=(16,), ratios=(2.0,), forms=forms, fit=Fit(3, 2))
    *_, made = evaluate(coder, load_tokenizer(str(tiny_model)), found[:1], asked, lambda done, total, what: None)
    assert sum(many for many, _ in rows) == 5 + 5 and {fit for _, fit in rows} == {Fit(3, 2)}  # and what follows
    assert (made.refine, made.continuations) == (3, 2)


def test_what_the_store_loses_shows_in_what_comes_back(
    coder: Autoencoder, found: list[Kind], tiny_model: Path, folder: Path
) -> None:
    """By hand: the slots of each context packed and unpacked, and the nats behind these."""
    forms = tuple(FORMS[name] for name in ("float16", "int8", "int4/32"))
    asked = replace(ASKED, tokens=(24,), ratios=(2.0,), forms=forms)
    seen: list[tuple[int, int, str]] = []
    tokenizer = load_tokenizer(str(tiny_model))
    *_, made = evaluate(coder, tokenizer, found[:1], asked, lambda *now: seen.append(now))
    told = [(at, 5, f"prose, 24 tokens, {one.name}") for at, one in enumerate(forms)]
    others = (3, 5, "prose, 24 tokens, what follows"), (4, 5, "seconds for one context")
    assert list(dict.fromkeys(seen)) == [*told, *others]
    assert all(seen.count(one) > 24 for one in told)  # at every token that is written
    assert [(one.form, one.bytes) for one in made.stored] == [("float16", 128), ("int8", 66), ("int4/32", 36)]
    spans = torch.from_numpy(found[0].spans(5, 24, 0))
    head = coder.model.get_output_embeddings().weight
    with torch.inference_mode():
        slots = encoded(coder, spans, ((12, 6), (12, 6)))
        for one, form in zip(made.stored, forms, strict=True):
            back = torch.stack([unpack(pack(row, coder.common, *form)) for row in slots])
            states = coder.states(back, torch.zeros(5, dtype=torch.int64), spans)
            assert one.nats.value == pytest.approx(float(nats_of(states, head, spans).mean()), abs=1e-5)
            assert one.loss == pytest.approx(float((back - slots).norm() / slots.norm()), rel=1e-4)
    float16, int8, int4 = made.stored
    assert float16.loss < int8.loss / 5 < int4.loss / 50 and int8.nats != int4.nats
    assert made.repeated == [
        Repeated("prose", 24, 12, 5, float16.nats, made.repeated[0].agreement, float16.bleu4, float16.prefix)
    ]
    assert float16.difference is None and int4.bleu4 and float16.bleu4 and int4.difference
    assert int4.difference.value == pytest.approx(int4.bleu4.value - float16.bleu4.value)
    html = render_encoder(made, "night", read_manifest(folder), [])
    assert "By how slots are stored" in html and "int4/32" in html
    screen = io.StringIO()
    print_evaluation(made, Console(file=screen, width=120))
    assert "by how slots are stored" in screen.getvalue() and "int4/32" in screen.getvalue()
    *_, alone = evaluate(coder, tokenizer, found[:1], replace(asked, forms=(FORMS["int8"],)), lambda *_: None)
    assert alone.repeated[0].nats == int8.nats and not alone.compares_forms


def test_what_is_measured_comes_part_by_part(coder: Autoencoder, found: list[Kind], tiny_model: Path) -> None:
    """Each with all of its rows, the same as at the end; whoever stops meanwhile has those before."""
    forms = tuple(FORMS[name] for name in ("float16", "int8"))
    asked = replace(ASKED, tokens=(16,), ratios=(2.0,), forms=forms)
    parts = [*evaluate(coder, load_tokenizer(str(tiny_model)), found[:2], asked, lambda *_: None)]
    many = [(len(one.repeated), len(one.stored), len(one.continued), len(one.latencies)) for one in parts]
    assert many == [(0, 0, 0, 0), (1, 1, 0, 0), (1, 2, 0, 0), (1, 2, 1, 0), (2, 3, 1, 0), (2, 4, 1, 0), (2, 4, 1, 1)]
    assert [(one.measured, one.total) for one in parts] == [(at, 6) for at in range(7)]
    assert [one.unfinished for one in parts] == [True] * 6 + [False]
    *_, whole = parts
    for one in parts:
        assert one.stored == whole.stored[: len(one.stored)] and one.continued == whole.continued[: len(one.continued)]
        assert one.to_json()["unfinished"] is one.unfinished

    def interrupted(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    stopping = evaluate(coder, load_tokenizer(str(tiny_model)), found[:2], asked, interrupted)
    before = [next(stopping) for _ in range(4)]
    with pytest.raises(KeyboardInterrupt):
        next(stopping)
    assert before[-1].to_json() == parts[3].to_json()


def test_contexts_may_be_the_first_tokens_of_texts(
    coder: Autoencoder, corpus: Corpus, found: list[Kind], tiny_model: Path
) -> None:
    """A text once, so that there may be fewer; what is made up has no beginning."""
    prose, numbers = Kind("prose", corpus, 1024), next(one for one in found if one.name == "numbers")
    long = [at for at, size in zip(prose.corpus.begins, prose.corpus.lengths, strict=True) if size >= 16]
    firsts = {tuple(prose.corpus.ids[at : at + 16].tolist()) for at in long}
    assert {tuple(row) for row in prose.spans(1000, 16, 0, starts=True).tolist()} == firsts
    assert len(prose.spans(1000, 16, 0, starts=True)) == len(long) and len(prose.spans(3, 16, 0, starts=True)) == 3
    assert numbers.spans(4, 16, 0, starts=True).tolist() == numbers.spans(4, 16, 0).tolist()
    asked = Asked((16,), (2.0,), span=16, rows=1000, continued=8, batch_tokens=64, half=False, starts=True)
    *_, made = evaluate(coder, load_tokenizer(str(tiny_model)), [prose], asked, lambda *_: None)
    assert made.starts and made.repeated[0].rows == len(long) < 1000
    screen = io.StringIO()
    print_evaluation(made, Console(file=screen, width=80))
    assert "contexts are the first tokens of texts" in screen.getvalue()


def test_a_report_of_it(coder: Autoencoder, found: list[Kind], tiny_model: Path, folder: Path) -> None:
    short = Asked(tokens=(16, 20_000), ratios=(2.0,), span=16, rows=2, continued=8, batch_tokens=64, half=False)
    tokenizer = load_tokenizer(str(tiny_model))
    *_, made = evaluate(coder, tokenizer, found[:1], short, lambda *_: None)
    assert made.short == [("prose", 20_000)] and made.measured == made.total == 2 + 2, "what is short is not counted"
    html = render_encoder(made, "<night>", read_manifest(folder), [(0, 7.0), (1, 6.5), (2, 6.0)])
    assert html.lstrip().startswith("<!DOCTYPE html>") and "&lt;night&gt;" in html and "<night>" not in html
    assert "0 answers" not in html and "token F1" not in html
    answers = Answers(7, 3, (4.0, 1.0, 3.0, 2.0), (0.0, 0.5, 0.125, 0.25), (None,) * 4, 3.5)
    taught = render_encoder(made, "night", replace(read_manifest(folder), answers=answers), [])
    assert "7 answers, 3.000 -&gt; 2.000 nats a token" in taught and "token F1 0.125 -&gt; 0.250" in taught
    unknown = replace(read_manifest(folder), figures=replace(read_manifest(folder).figures, nats=(None, None)))
    assert "slots: - -&gt; - nats a token" in render_encoder(made, "night", unknown, [])
    assert html.count("<svg") == 1 and "<svg" not in render_encoder(made, "night", read_manifest(folder), [])
    two = replace(made, repeated=[*made.repeated, replace(made.repeated[0], tokens=32)])
    plots = render_encoder(two, "night", read_manifest(folder), [])
    assert plots.count("<svg") == 3 and "prefix over the tokens of a context" in plots
    assert f"{made.repeated[0].nats.value:.3f}" in plots and "nats a token" in plots
    assert "From 7.000 to 6.000 nats" in html and "prose for 20,000 tokens" in html
    fitted, said = replace(made, refine=3), "slots were fitted to their spans first, in 3 steps at most"
    screen = io.StringIO()
    print_evaluation(fitted, Console(file=screen, width=40))
    assert said in screen.getvalue() and said in render_encoder(fitted, "night", read_manifest(folder), [])
    assert "fitted" not in html


def test_contexts_that_the_model_cannot_read() -> None:
    with pytest.raises(ModelError, match=r"24 tokens take 37 places .* reads 36 at most"):
        check(ASKED, 36, most=8)
    check(ASKED, 37, most=8)
    with pytest.raises(ModelError, match=r"a span of 16 tokens takes 8 slots, and its encoder makes 7 at most"):
        check(ASKED, None, most=7)
