"""Sentences as nltk 3.9.1 splits them, and where its data come from."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from reference_models import sentence_data

from pipeline.compression.reference import punkt
from pipeline.models import ModelError, ModelNotFound, catalogue, pull, verify
from pipeline.models.punkt import FILES
from schemas.settings import Settings

INSIDE = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"


def wheel_of(folder: Path, change: dict[str, bytes] | None = None, leave_out: str = "") -> Path:
    """A wheel with the data, as far as they matter; ``change`` puts other content under a name."""
    sentence_data()
    cached = Settings().cache / "nltk"
    contents = {name: next(cached.glob(f"*/{name}")).read_bytes() for name in FILES}
    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in (contents | (change or {})).items():
            if name != leave_out:
                wheel.writestr(INSIDE + name, content)
        wheel.writestr("../../escape.txt", "no path from the archive is used")
    return path


def test_sentences_end_as_in_3_9_1() -> None:
    sentence_data()
    split = punkt.load()
    text = "  Mr. Smith (of the U.S.A.) paid $3.50. He said “go.” Then he left. 'Why?' she asked... Dr. No came."
    assert split(text) == [
        "  Mr. Smith (of the U.S.A.) paid $3.50.",
        "He said “go.” Then he left.",  # later releases end a sentence at the curly quote
        "'Why?'",
        "she asked... Dr. No came.",
    ]
    assert split("") == split(" \n") == []
    long = "It rained. " * 60_000
    assert len(split(long)) == 60_000


def test_a_machine_without_the_data_is_told_how_to_get_them(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path / "empty")
    with pytest.raises(ModelNotFound, match="contextmill models pull punkt-english"):
        punkt.load(settings)
    pull("punkt-english", settings, source=wheel_of(tmp_path))
    assert punkt.load(settings)("One. Two.") == ["One.", "Two."]
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["abbrev_types.txt", "sent_starters.txt"]


@pytest.mark.parametrize(
    ("change", "leave_out", "message"),
    [
        ({"collocations.tab": b"a\tb"}, "", "collocations.tab is not the file"),
        (None, "ortho_context.tab", "no wheel of llama-index-core 0.14.25"),
    ],
)
def test_a_wheel_with_other_data_is_refused(
    tmp_path: Path, change: dict[str, bytes] | None, leave_out: str, message: str
) -> None:
    settings = Settings(cache_dir=tmp_path / "empty")
    with pytest.raises(ModelError, match=message):
        pull("punkt-english", settings, source=wheel_of(tmp_path, change, leave_out))
    with pytest.raises(ModelNotFound):
        punkt.load(settings)


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.whl").write_text("no zip file")
    with pytest.raises(ModelError, match="no wheel"):
        pull("punkt-english", Settings(cache_dir=tmp_path / "empty"), source=tmp_path / "no.whl")


def test_the_data_are_listed_and_mended_as_models_are(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path / "empty")

    def line() -> tuple[str, str]:
        (one,) = (row for row in catalogue(settings) if row.name == "punkt-english")
        assert one == verify("punkt-english", settings)
        return one.state, one.detail

    assert line() == ("missing", "`contextmill models pull punkt-english`")
    folder = pull("punkt-english", settings, source=wheel_of(tmp_path)).folder
    assert line() == ("ready", "")
    (folder / "collocations.tab").write_bytes(b"a\tb")
    assert line() == ("damaged", "collocations.tab is not what was written (its sha256 differs)")
    with pytest.raises(ModelNotFound, match="contextmill models pull punkt-english"):
        punkt.load(settings)
    pull("punkt-english", settings, source=wheel_of(tmp_path))
    assert line() == ("ready", "")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot write the model cache .*: Not a directory; make room or set"):
        pull("punkt-english", Settings(cache_dir=tmp_path / "file"), source=wheel_of(tmp_path))
