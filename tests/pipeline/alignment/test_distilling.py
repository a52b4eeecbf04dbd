"""A drafter learns what its target reads and writes, is the same however often it was killed, and drafts by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distilled_models import ANSWERS, answered, save_taught, spec, stage
from fates import Fate, Killed
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_models import save_tiny_llama

from pipeline.alignment.pairs import framed
from pipeline.alignment.training import Trainer
from pipeline.generation.local import prompts_of
from pipeline.generation.prompts import Prompt
from pipeline.generation.stage import Generate
from pipeline.models import ModelDamaged, ModelError, ModelPool, catalogue, resolve
from pipeline.models.distilled import FIGURES, Drafts, Figures, check_name, install, read_figures, store_folder
from pipeline.stages import Outcome, Result, Run, Stopped
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.records import STAGE_FIELDS
from schemas.settings import Settings
from schemas.stage import GenerateSpec

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def target(pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_taught(tmp_path_factory.mktemp("taught"), pool)


@pytest.fixture(scope="module")
def documents(target: Path, pool: ModelPool) -> list[Document]:
    return answered(target, pool)


@pytest.fixture(scope="module")
def whole(
    target: Path, documents: list[Document], pool: ModelPool, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """An uninterrupted training: its folder and what it wrote of each document."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(stage(target).run(documents, Run(pool, folder=str(folder))))


def written(outcomes: list[Outcome]) -> list[Any]:
    """What must not differ: all but seconds."""
    rows = [outcome.fields for outcome in outcomes if isinstance(outcome, Result)]
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


def test_more_drafts_are_accepted_of_prompts_that_were_held_out(whole: tuple[Path, list[Any]]) -> None:
    folder, rows = whole
    figures = read_figures(folder / "model")
    held = [row for row in rows if row["split"] == "held_out"]
    assert 0 < len(held) < len(rows) and figures.answers == figures.answered == len(held)
    assert figures.before.accepted is not None and figures.after.accepted is not None
    assert figures.after.accepted > 2 * figures.before.accepted > 0
    assert figures.after.target_passes < figures.before.target_passes
    assert figures.agreement[1] > figures.agreement[0] + 0.2 and figures.nats[1] < figures.nats[0] - 1
    for when, drafts in (("before", figures.before), ("after", figures.after)):
        names = [f"{name}_{when}" for name in ("target_passes", "tokens_drafted", "tokens_accepted")]
        assert [sum(row[name] for row in held) for name in names] == [
            drafts.target_passes, drafts.tokens_drafted, drafts.tokens_accepted,
        ]  # fmt: skip
        assert all(row[name] is None for row in rows if row not in held for name in names)
    assert all({*row, "distill_seconds"} == set(STAGE_FIELDS["distill"].names) for row in rows)


def test_it_learns_the_very_tokens_that_the_target_reads_and_writes(
    target: Path, documents: list[Document], pool: ModelPool
) -> None:
    loaded, answers = pool.causal_lm(str(target)), GenerateSpec.model_validate(ANSWERS)
    asked = prompts_of(documents, str(target), loaded, answers)
    end = loaded.tokenizer.eos_token_id
    for pair, prompt in zip(framed(documents, str(target), answers, 2048), asked, strict=True):
        assert isinstance(prompt, Prompt) and pair.ids[: pair.answer].tolist() == prompt.ids
        text = loaded.tokenizer.decode(pair.ids[pair.answer :].tolist())
        assert text == pair.document.answer and (pair.ids[-1] == end) == text.endswith("<|im_end|>")
    (cut,) = framed(documents[:1], str(target), answers, 16)
    assert len(cut.ids) == 16 and cut.ids[0] == prompts_of(documents[:1], "", loaded, answers)[0].ids[0]  # type: ignore[union-attr]


def test_a_drafter_with_a_chat_template_of_its_own_learns_that_of_its_target(
    target: Path, documents: list[Document], pool: ModelPool, tmp_path: Path
) -> None:
    other = save_tiny_llama(tmp_path)
    (other / "chat_template.jinja").write_text("Say: {{ messages[0]['content'] }}")
    lesson = stage(target, drafter=str(other))
    lesson.check()
    loaded = pool.causal_lm(str(other))
    assert loaded.tokenizer.chat_template.startswith("Say")
    own = lesson.pairs(documents, pool.causal_lm(str(target)), lambda: None)
    for mine, theirs in zip(lesson.pairs(documents, loaded, lambda: None), own, strict=True):
        assert mine.ids.tolist() == theirs.ids.tolist() and mine.answer == theirs.answer


def test_what_is_shared_with_the_target_stays(target: Path, whole: tuple[Path, list[Any]]) -> None:
    """What tokens are at both ends; the layers are the copy's own."""
    mine, theirs = load_file(whole[0] / "model" / WEIGHTS), load_file(target / WEIGHTS)
    same = {name for name in mine if bool((mine[name] == theirs[name]).all())}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name.split(".")[2] for name in mine if ".layers." in name} == {"0"}


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_continued_is_the_same(
    whole: tuple[Path, list[Any]], target: Path, documents: list[Document], pool: ModelPool, tmp_path: Path, seed: int
) -> None:
    random, outcomes, attempts = np.random.default_rng(seed), None, 0
    while outcomes is None:
        attempts += 1
        assert attempts < 40, "no attempt gets anywhere"
        with contextlib.suppress(Stopped, Killed):
            run = Run(pool, folder=str(tmp_path), stopping=Fate(random, 3, 19))
            outcomes = stage(target).run(documents, run)
    assert attempts > 2
    assert written(outcomes) == whole[1]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {path.name for path in (whole[0] / "model").iterdir()} >= {WEIGHTS, FIGURES, "tokenizer.json"}
    assert all((tmp_path / "model" / one).read_bytes() == (whole[0] / "model" / one).read_bytes() for one in names)


def test_a_worker_that_dies_while_the_target_answers_has_nothing_to_learn_anew(
    target: Path, documents: list[Document], pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.alignment.drafts.upload", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stage(target).run(documents, Run(pool, folder=str(tmp_path)))
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("there is nothing left to learn"))
    assert len(stage(target).run(documents, Run(pool, folder=str(tmp_path)))) == len(documents)


def test_it_drafts_by_name_and_every_answer_stays(
    whole: tuple[Path, list[Any]], target: Path, documents: list[Document], pool: ModelPool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(tmp_path))
    install(whole[0] / "model", "swift", tmp_path, "recipe")
    plain, *drafted = (
        answers_of(target, documents, pool, **more)
        for more in ({}, {"drafters": ["swift"], "draft_rounds": [4]}, {"drafters": ["swift"], "draft_tokens": 2})
    )
    assert all([row["generated"] for row in rows] == [row["generated"] for row in plain] for rows in drafted)
    assert all(row["drafts"][2]["model"] == "swift" and row["drafts"][2]["drafted"] > 0 for row in drafted[0])
    assert sum(row["target_passes"] for row in drafted[0]) < 0.6 * sum(row["target_passes"] for row in plain)


def answers_of(target: Path, documents: list[Document], pool: ModelPool, **more: Any) -> list[dict[str, Any]]:
    generate = Generate(GenerateSpec.model_validate({**ANSWERS, **more}), TargetSpec(model=str(target)))
    generate.check()
    return [one.fields for one in generate.run(documents, Run(pool)) if isinstance(one, Result)]


def test_a_drafter_has_a_name_in_the_store(whole: tuple[Path, list[Any]], tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path)
    source = whole[0] / "model"
    folder = install(source, "swift", tmp_path, "recipe")
    assert resolve("swift", settings).digest == resolve(str(source), settings).digest
    (row,) = [one for one in catalogue(settings) if one.name == "swift"]
    assert row.state == "ready" and "of its drafts accepted" in row.detail
    check_name("swift", tmp_path, "recipe", replace=False)
    check_name("swift", tmp_path, "another", replace=True)
    with pytest.raises(ModelError, match=r"another drafter is called swift already.*--replace"):
        check_name("swift", tmp_path, "another", replace=False)
    for name in ("smollm2-135m-instruct", "a/b", "a+b", str(tmp_path), ""):
        with pytest.raises(ModelError, match="cannot be called"):
            check_name(name, tmp_path, "recipe", replace=False)
    with pytest.raises(ModelError, match="did you mean swift"):
        resolve("swif", settings)
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelDamaged, match="contextmill distill --replace"):
        resolve("swift", settings)
    assert install(source, "swift", tmp_path, "recipe") == store_folder("swift", tmp_path)
    assert resolve("swift", settings).digest == resolve(str(source), settings).digest


def test_what_could_not_draft_is_refused_with_the_remedy(
    target: Path, documents: list[Document], pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    other = save_tiny_llama(tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|ended|>"))
    with pytest.raises(ModelError, match=r"vocabularies differ; name a model with the target's own tokenizer"):
        stage(target, drafter=str(other)).check()
    with pytest.raises(ModelError, match="which has 3 layers: name fewer"):
        stage(target, layers=3).check()
    for both in ({"layers": None}, {"layers": 1, "drafter": "x"}):
        with pytest.raises(ValidationError, match=r"layers .* or drafter .*: one of them"):
            spec(**both)
    monkeypatch.setattr("pipeline.generation.decoding.passes_for", lambda _: None)
    with pytest.raises(Exception, match="decoded by transformers' generate, hence without drafts"):
        stage(target).run(documents, Run(pool))


def test_speed_settings_of_the_answers_make_no_other_training() -> None:
    same = spec(), spec(answers={**ANSWERS, "batch_tokens": 99, "draft_tokens": 3})
    assert same[0].output_settings() == same[1].output_settings()
    assert spec(answers={**ANSWERS, "temperature": 1.0}).output_settings() != same[0].output_settings()


def test_figures_say_what_there_is(whole: tuple[Path, list[Any]]) -> None:
    figures = read_figures(whole[0] / "model")
    assert Figures.to_json(figures) == (whole[0] / "model" / FIGURES).read_text()
    assert " -> " in figures.gain and "tokens a pass" in figures.gain


def test_a_drafter_is_better_by_what_passes_of_its_drafts() -> None:
    """By what it says where nothing was answered with them."""

    def figures(nats: float, accepted: int | None) -> Figures:
        before, after = (Drafts(10 * (some is not None), 20, some or 0) for some in (5 if accepted else None, accepted))
        return Figures("target", "begun", 9, (2.0, nats), (0.5, 0.5), 2, 3, before, after)

    assert figures(3.0, 6).better and not figures(1.0, 4).better and not figures(1.0, 5).better
    assert figures(1.0, None).better and not figures(2.0, None).better
