from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from model_files import gguf_tensors, write_gguf
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pipeline.models import (
    ModelDamaged,
    ModelError,
    catalogue,
    digest_of,
    gguf_tokenizer,
    load_tokenizer,
    resolve,
    store,
    verify,
)
from pipeline.models.placing import MANIFEST
from schemas.settings import Settings

TEXTS = ["a mill grinds", "x  12", "a\n\n45 lines", "½ été ▁ <|im_end|>", " \t 7"]


def test_float_gguf_gives_the_weights_it_was_written_from(
    reference_gguf: Path, reference_folder: Path, settings: Settings
) -> None:
    converted = load_file(resolve(str(reference_gguf), settings).folder / "model.safetensors")
    original = load_file(reference_folder / "model.safetensors")
    assert converted.keys() == original.keys()  # tied embeddings are stored once
    assert all(np.array_equal(converted[name], original[name]) for name in original)


def test_quantised_gguf_is_dequantised_exactly(folder: Path, settings: Settings, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "q4.gguf", folder, quantise=True)
    converted = load_file(resolve(str(path), settings).folder / "model.safetensors")
    up = gguf_tensors(folder)["blk.1.ffn_up.weight"]
    kind = GGMLQuantizationType.Q4_1
    expected = quants.dequantize(quants.quantize(up, kind), kind)
    assert np.array_equal(converted["model.layers.1.mlp.up_proj.weight"], expected)
    assert not np.array_equal(expected, up)


def test_tokenizer_is_the_one_the_model_was_trained_with(
    reference_gguf: Path, reference_folder: Path, settings: Settings
) -> None:
    tokenizer = load_tokenizer(str(reference_gguf), settings)
    original = Tokenizer.from_file(str(reference_folder / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer.encode(text) == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_digits_make_a_difference_that_transformers_own_reading_misses(
    reference_gguf: Path, reference_folder: Path
) -> None:
    """When this fails, transformers has learned it and ``SINGLE_DIGITS`` may go."""
    original = Tokenizer.from_file(str(reference_folder / "tokenizer.json"))
    read = gguf_tokenizer._as_transformers_reads_it(reference_gguf)
    assert original.encode("x  12").tokens == ["x", "ĠĠ", "1", "2"]
    assert read.tokenize("x  12") == ["x", "Ġ", "Ġ", "1", "2"]


def test_other_vocabularies_keep_special_tokens_and_round_trip(
    folder: Path, settings: Settings, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "gpt2.gguf", folder, pre="gpt-2")
    tokenizer = load_tokenizer(str(path), settings)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokenizer.decode(tokenizer.encode("a mill , 12 !")) == "a mill , 12 !"


def test_a_folder_of_an_earlier_release_is_used_as_it_is(reference_gguf: Path, settings: Settings) -> None:
    """Its manifest says ``gguf_sha256`` where it now says ``source``."""
    first = resolve(str(reference_gguf), settings)
    path = first.folder / MANIFEST
    stated = json.loads(path.read_text())
    stated["gguf_sha256"] = stated.pop("source")
    path.write_text(json.dumps(stated))
    before = path.stat().st_mtime_ns
    assert resolve(str(reference_gguf), settings) == first
    assert path.stat().st_mtime_ns == before
    assert verify(str(first.folder), settings).state == "ready"
    del stated["gguf_sha256"]
    path.write_text(json.dumps(stated))
    with pytest.raises(ModelDamaged, match="not a manifest"):
        store.read_manifest(first.folder)


def test_same_file_elsewhere_is_converted_once(reference_gguf: Path, settings: Settings, tmp_path: Path) -> None:
    first = resolve(str(reference_gguf), settings)
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    second = resolve(shutil.copy(str(reference_gguf), str(tmp_path / "other-name.bin")), settings)
    assert (second.folder, second.digest) == (first.folder, first.digest)
    assert (second.folder / "model.safetensors").stat().st_mtime_ns == written
    assert stat.S_IMODE((first.folder / "model.safetensors").stat().st_mode) & stat.S_IRUSR
    assert verify(str(first.folder), settings).state == "ready"
    assert verify(str(first.folder), settings).licence == "mit"
    assert digest_of(str(reference_gguf), settings) == first.digest


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_truncated_file_is_refused_and_leaves_nothing(
    keep: float, reference_gguf: Path, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(reference_gguf.read_bytes()[: int(reference_gguf.stat().st_size * keep)])
    with pytest.raises(ModelDamaged, match=r"cut\.gguf.*fetch the file again"):
        resolve(str(path), settings)
    assert not [left for left in (settings.cache / "models").iterdir() if left.is_dir()]


def test_missing_tensor_is_not_filled_with_random_numbers(folder: Path, settings: Settings, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "holes.gguf", folder, leave_out="blk.1.ffn_up.weight")
    with pytest.raises(ModelDamaged, match=r"missing.*up_proj"):
        resolve(str(path), settings)


def test_file_of_another_kind_is_refused(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(str(path), settings)


def test_a_converted_file_is_listed_under_a_name_that_works(reference_gguf: Path, settings: Settings) -> None:
    folder = resolve(str(reference_gguf), settings).folder
    (row,) = [row for row in catalogue(settings) if row.where == str(folder)]
    assert resolve(row.name, settings).folder == folder
    assert verify(row.name, settings).state == row.state == "ready"
    (folder / MANIFEST).write_text('{"conversion": 0}')
    (row,) = [row for row in catalogue(settings) if row.where == str(folder)]
    assert verify(row.name, settings).state == row.state == "damaged"


def test_cache_that_cannot_be_written_says_what_to_set(reference_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="CONTEXTMILL_CACHE_DIR"):
        resolve(str(reference_gguf), Settings(cache_dir=tmp_path / "file" / "cache"))
