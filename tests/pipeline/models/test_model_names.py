from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models import ModelDamaged, ModelError, ModelNotFound, digest_of, load_tokenizer, resolve, verify
from pipeline.models.digest import REMEMBER_FROM, file_sha256
from schemas.settings import Settings


def test_import_is_light() -> None:
    script = "import sys, pipeline.models; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_default_says_how_to_get_it(settings: Settings) -> None:
    with pytest.raises(ModelNotFound, match="`contextmill models pull smollm2-135m-instruct`"):
        resolve("smollm2-135m-instruct", settings)


def test_slip_of_the_pen_names_the_nearest(settings: Settings) -> None:
    with pytest.raises(ModelNotFound, match="did you mean smollm2-135m-instruct"):
        resolve("smollm2-135-instruct", settings)


def test_bundled_name_is_never_a_folder(folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("smollm2-135m-instruct"))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ModelNotFound):
        resolve("smollm2-135m-instruct", settings)
    assert resolve("./smollm2-135m-instruct", settings).folder == folder.with_name("smollm2-135m-instruct")


def test_digest_is_of_contents_not_of_place(folder: Path, settings: Settings, tmp_path: Path) -> None:
    first = digest_of(str(folder), settings)
    shutil.copytree(folder, tmp_path / "copy")
    assert digest_of(str(tmp_path / "copy"), settings) == first
    (tmp_path / "copy" / "README.md").write_text("not part of the model")
    _edit(tmp_path / "copy" / "config.json", transformers_version="5.10.0")
    assert digest_of(str(tmp_path / "copy"), settings) == first


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_digest_covers_config_weights_and_tokenizer(name: str, folder: Path, settings: Settings) -> None:
    before = digest_of(str(folder), settings)
    if name == "model.safetensors":
        _flip_last_byte(folder / name)
    else:
        _edit(folder / name, added=1)
    assert digest_of(str(folder), settings) != before


def test_large_files_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    path, cache = tmp_path / "large", tmp_path / "cache"
    path.write_bytes(bytes(REMEMBER_FROM))
    true = file_sha256(path, cache)
    [note] = (cache / "digests").iterdir()
    note.write_text("f" * 64)
    assert file_sha256(path, cache) == "f" * 64  # taken from the note: nothing was read
    assert file_sha256(path, cache, fresh=True) == true
    _flip_last_byte(path)
    assert file_sha256(path, cache) not in (true, "f" * 64)


def test_read_only_cache_costs_only_time(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(REMEMBER_FROM))
    (tmp_path / "file").touch()
    assert file_sha256(path, tmp_path / "file") == file_sha256(path, tmp_path / "cache")


def test_tokenizer_alone_is_enough_for_counting(folder: Path, settings: Settings) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    assert load_tokenizer(str(folder), settings).encode("a mill")
    with pytest.raises(ModelError, match="no config"):
        resolve(str(folder), settings)


def test_tokenizer_is_shared_until_it_changes(folder: Path, settings: Settings) -> None:
    first = load_tokenizer(str(folder), settings)
    assert load_tokenizer(str(folder), settings) is first
    assert first.pad_token == "<|im_end|>"  # the folder states none
    assert first.model_max_length == 128
    _edit(folder / "config.json", max_position_embeddings=64)
    assert load_tokenizer(str(folder), settings).model_max_length == 64


def test_a_tokenizer_that_nothing_could_pad_is_refused(folder: Path, settings: Settings) -> None:
    _edit(folder / "tokenizer_config.json", pad_token=None, eos_token=None, unk_token=None)
    with pytest.raises(ModelError, match="no pad, eos or unk token"):
        load_tokenizer(str(folder), settings)


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand_is_refused(folder: Path, settings: Settings) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    _edit(folder / "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")  # there is none but in Python
    with pytest.raises(ModelError, match="only a slow tokenizer"):
        load_tokenizer(str(folder), settings)


def test_a_folder_without_a_tokenizers_files_is_refused_with_what_to_do(folder: Path, settings: Settings) -> None:
    (folder / "tokenizer.json").unlink()  # as ByT5's folders are
    with pytest.raises(ModelError, match=r"none of tokenizer.json, .* save it beside the weights .* will not do"):
        load_tokenizer(str(folder), settings)


def test_unreadable_tokenizer_is_named(folder: Path, settings: Settings) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}')
    with pytest.raises(ModelDamaged, match="the tokenizer in"):
        load_tokenizer(str(folder), settings)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path, settings: Settings) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\).*save_pretrained"):
        resolve(str(folder), settings)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_folder_is_named(name: str, folder: Path, settings: Settings) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=str(folder)):
        resolve(str(folder), settings)


@pytest.mark.parametrize("size", [0, 5, 400, -1])
def test_truncated_weights_are_damaged(size: int, folder: Path, settings: Settings) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelDamaged, match=r"model\.safetensors: damaged or truncated"):
        resolve(str(folder), settings)
    assert verify(str(folder), settings).state == "damaged"


def test_config_that_is_no_json(folder: Path, settings: Settings) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ModelDamaged, match=r"config\.json: no valid JSON"):
        resolve(str(folder), settings)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-2.safetensors"}, r"1 of 2 weight files missing \(model-2"),
        ({"a": "../outside.safetensors"}, "names no shards in this folder"),
        ([], "names no shards in this folder"),
    ],
)
def test_index_must_name_shards_that_are_here(shards: object, message: str, folder: Path, settings: Settings) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelDamaged, match=message):
        resolve(str(folder), settings)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
