"""An encoder as files: read again it makes the very slots, over the model it was trained with and no other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining_jobs import TEXTS, stage, written
from tiny_models import save_tiny_llama

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encoder import load_encoder
from pipeline.models import ModelDamaged, ModelError, ModelNotFound, ModelPool, catalogue, encoders, verify
from pipeline.models.encoders import MANIFEST, WEIGHTS, check_name, find, install, read_manifest, store_folder
from pipeline.stages import Run
from schemas.settings import Settings

KINDS: dict[str, dict[str, Any]] = {
    "low rank": {"rank": 4, "alpha": 8.0},
    "appended": {"rank": 4, "alpha": 8.0, "layout": "appended", "slots": 8, "targets": ["q_proj", "v_proj"]},
    "whole": {"rank": 0},
}


@pytest.fixture
def made(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> Path:
    stage(tiny_model, steps=2).run(TEXTS, Run(pool, folder=str(tmp_path / "job")))
    return tmp_path / "job" / "encoder"


@pytest.mark.parametrize("kind", KINDS)
def test_it_makes_the_slots_that_were_measured(
    kind: str, tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coders: list[Autoencoder] = []
    monkeypatch.setattr("pipeline.memory.session.rounded", coders.append)
    stage(tiny_model, steps=2, encoder=KINDS[kind]).run(TEXTS, Run(pool, folder=str(tmp_path)))
    ids = torch.randint(3, 900, (3, 13), generator=torch.Generator().manual_seed(1))
    loaded = load_encoder(str(tmp_path / "encoder"), pool)
    assert not loaded.trained() and not loaded.training
    with torch.inference_mode():
        torch.testing.assert_close(loaded.encode(ids, 5), coders[0].encode(ids, 5), rtol=2e-2, atol=2e-2)
        half = load_encoder(str(tmp_path / "encoder"), pool, dtype="bfloat16").encode(ids, 5)
    assert half.shape == (3, 5, 64) and half.isfinite().all()
    monkeypatch.setattr("pipeline.memory.lowrank.pays", lambda given: True)  # nothing is learned
    kept = load_encoder(str(tmp_path / "encoder"), pool, dtype="bfloat16").encode(ids, 5)
    torch.testing.assert_close(kept, half, rtol=5e-2, atol=5e-2)


def test_its_name_in_the_store(made: Path, tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path / "cache")
    with pytest.raises(ModelNotFound, match=r"no encoder 'night': name one that this machine knows"):
        load_encoder("night", pool, settings=settings)
    folder = install(made, "night", settings.cache, read_manifest(made))
    assert folder == store_folder("night", settings.cache) and {one.name for one in folder.iterdir()} >= {WEIGHTS}
    ids = torch.arange(20, 32)[None]
    two = (load_encoder(name, pool, settings=settings).encode(ids, 3) for name in ("night", str(made)))
    assert torch.equal(*two)
    (row,) = [one for one in catalogue(settings) if one.name == "night"]
    assert row.state == "ready" and f"for {tiny_model}" in row.detail and "16 tokens in 8 slots" in row.detail
    check_name("night", settings.cache, "", replace=False)
    check_name("night", settings.cache, "another", replace=True)
    with pytest.raises(ModelError, match=r"another encoder is called night already.*--replace"):
        check_name("night", settings.cache, "another", replace=False)
    for name in (WEIGHTS, MANIFEST):
        (folder / name).write_bytes(b"{}")
        assert verify("night", settings).state == "damaged"
        with pytest.raises(ModelDamaged, match=r"icae pretrain --replace"):
            load_encoder("night", pool, settings=settings)
        install(made, "night", settings.cache, read_manifest(made))
        load_encoder("night", pool, settings=settings)
    assert verify("night", settings).state == "ready" and verify("day", settings).state == "missing"


def test_one_that_comes_along_is_known_by_name_behind_the_store(
    made: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, along = Settings(cache_dir=tmp_path / "cache"), tmp_path / "along"
    monkeypatch.setattr(encoders, "SHIPPED", along)
    shipped = shutil.copytree(made, along / "small")
    assert find("small", settings.cache) == shipped and verify("small", settings).state == "ready"
    assert [(one.where, one.licence) for one in catalogue(settings) if one.name == "small"] == [
        (str(shipped), "Apache-2.0")
    ]
    ids = torch.arange(20, 32)[None]
    two = (load_encoder(name, pool, settings=settings).encode(ids, 3) for name in ("small", str(made)))
    assert torch.equal(*two)
    (shipped / WEIGHTS).write_bytes(b"{}")
    with pytest.raises(ModelDamaged, match="install contextmill anew"):
        load_encoder("small", pool, settings=settings)
    check_name("small", settings.cache, "", replace=False)  # it hinders nobody
    install(made, "small", settings.cache, read_manifest(made))
    assert find("small", settings.cache) == store_folder("small", settings.cache)
    assert [one.state for one in catalogue(settings) if one.name == "small"] == ["ready"]
    with pytest.raises(ModelNotFound, match=r"no encoder 'tiny': .* knows \(small\)"):
        find("tiny", settings.cache)


def test_a_training_goes_on_from_it(made: Path, tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    after = written(stage(tiny_model, steps=2).run(TEXTS, Run(pool)))
    longer = stage(tiny_model, begin=str(made), learning_rate=1e-4)
    assert longer.identity() != stage(tiny_model).identity()
    rows = written(longer.run(TEXTS, Run(pool)))
    assert [row["nll_before"] for row in rows] == [row["nll_after"] for row in after]
    other = stage(tiny_model, begin=str(made), encoder={"rank": 8, "alpha": 8.0})
    with pytest.raises(ModelError, match=r"has alpha = 8.0, .*rank = 4.*: say the same in \[stages.encoder\]"):
        other.identity()
    with pytest.raises(ModelNotFound, match="no encoder 'nowhere'"):
        stage(tiny_model, begin="nowhere").identity()


def test_a_setting_that_was_not_there_yet_has_its_default(made: Path, tiny_model: Path, pool: ModelPool) -> None:
    said = json.loads((made / MANIFEST).read_text())
    assert said["spec"].pop("layout") == "interleaved"
    older = replace(read_manifest(made), spec=said["spec"])
    (made / MANIFEST).write_text(replace(older, written=older.revision).to_json())
    assert load_encoder(str(made), pool).spec.layout == "interleaved"
    assert stage(tiny_model, begin=str(made)).beginning() == made
    with pytest.raises(ModelError, match="say the same"):
        stage(tiny_model, begin=str(made), encoder={"rank": 4, "alpha": 8.0, "layout": "pooled"}).beginning()


def test_another_base_is_refused(made: Path, pool: ModelPool, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = save_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was made for .* and .*other has digest .*the very model"):
        load_encoder(str(made), pool, base=str(other))


ODD: list[tuple[str, dict[str, Any]]] = [
    ("spec", {"slots": "many"}),
    ("spec", {"layout": "spiral"}),
    ("spec", {"unheard": 1}),
    ("spec", {"targets": ["nowhere"]}),
    ("figures", {"tokens": 0}),
    ("figures", {"ratio": 0.5}),
    ("figures", {"slots": 99}),
]


def test_what_is_not_as_it_was_written_is_refused(made: Path, pool: ModelPool) -> None:
    weights = (made / WEIGHTS).read_bytes()
    (made / WEIGHTS).write_bytes(weights[:-2] + b"\0\1")
    with pytest.raises(ModelDamaged, match=r"not what was written \(its sha256 differs\)"):
        load_encoder(str(made), pool)
    (made / WEIGHTS).unlink()
    with pytest.raises(ModelDamaged, match="is missing; make the encoder again"):
        load_encoder(str(made), pool)
    (made / WEIGHTS).write_bytes(weights)
    said = json.loads((made / MANIFEST).read_text())
    edited = {**said, "spec": {**said["spec"], "rank": 2}}
    (made / MANIFEST).write_text(json.dumps({**edited, "written": ""}))
    with pytest.raises(ModelDamaged, match="its tensors are not those of such an encoder"):
        load_encoder(str(made), pool)
    for other in (edited, {**said, "spec": {**said["spec"], "alpha": 9.0}}, {**said, "base_digest": "0" * 64}):
        (made / MANIFEST).write_text(json.dumps(other))
        with pytest.raises(ModelDamaged, match="its spec, base_digest or sha256 is not as it was written"):
            load_encoder(str(made), pool)
    for older in ({name: one for name, one in said.items() if name != "format"}, {**said, "format": 2}):
        (made / MANIFEST).write_text(json.dumps(older))
        with pytest.raises(ModelDamaged, match="was made by another release of contextmill; make the encoder again"):
            load_encoder(str(made), pool)
    for part, odd in ODD:
        (made / MANIFEST).write_text(json.dumps({**said, part: {**said[part], **odd}}))
        with pytest.raises(ModelDamaged, match=r"contextmill\.json: .*make the encoder again"):
            load_encoder(str(made), pool)
    (made / MANIFEST).write_text(json.dumps({**said, "spec": None}))
    with pytest.raises(ModelDamaged, match="not an encoder's manifest"):
        load_encoder(str(made), pool)
    for wrong in (json.dumps({"format": encoders.FORMAT}), '{"format": 3', "[]", ""):
        (made / MANIFEST).write_text(wrong)
        with pytest.raises(ModelDamaged, match=r"not an encoder's manifest \(.*\); make the encoder again"):
            load_encoder(str(made), pool)
    (made / MANIFEST).unlink()
    lost = Settings(cache_dir=made.parent / "cache")
    shutil.copytree(made, store_folder("night", lost.cache))
    for name in (str(made), "night"):
        with pytest.raises(ModelDamaged, match=r"contextmill\.json is missing, without which tensors are no encoder"):
            load_encoder(name, pool, settings=lost)
