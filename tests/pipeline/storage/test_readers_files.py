"""Which files are read, packed and damaged ones, files that are not what their names say, and bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.storage.readers import BadRow, InputError, RawDocument, fingerprint, list_files, read_corpus
from schemas.job import InputSpec


def spec(*paths: Path | str, **settings: Any) -> InputSpec:
    return InputSpec(path=tuple(map(str, paths)), **settings)


def rows(*paths: Path | str, **settings: Any) -> list[RawDocument | BadRow]:
    return list(read_corpus(spec(*paths, **settings)))


def texts(*paths: Path | str, **settings: Any) -> list[str]:
    found = rows(*paths, **settings)
    assert [row for row in found if isinstance(row, BadRow)] == []
    return [row.parts.render() for row in found if isinstance(row, RawDocument)]


def jsonl(*values: str) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


gzipped = partial(gzip.compress, mtime=0)  # the same bytes, and so names of tests, in every process
PACK = {"": bytes, ".gz": gzipped, ".zst": zstandard.compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "csv", "parquet", "txt", "md"])
def test_every_format_plain_and_packed(tmp_path: Path, kind: str, packed: str) -> None:
    plain = tmp_path / "plain"
    pq.write_table(pa.table({"text": ["über ‱"]}), plain)
    content = {"csv": "text\nüber ‱\n".encode(), "parquet": plain.read_bytes(), "txt": "über ‱".encode()}
    content |= {"md": content["txt"], "jsonl": jsonl("über ‱"), "ndjson": jsonl("über ‱")}
    path = tmp_path / f"a.{kind}{packed}"
    path.write_bytes(PACK[packed](content[kind]))  # type: ignore[operator]
    assert texts(path) == ["über ‱"]


def test_members_and_frames_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl("a")) + gzip.compress(jsonl("b")))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(jsonl("c")) + zstandard.compress(jsonl("d")))
    assert texts(tmp_path) == ["a", "b", "c", "d"]


def test_a_folder_is_read_in_the_order_of_names_each_by_its_ending(tmp_path: Path) -> None:
    for folder in ("sub", ".hidden", "_temporary"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_bytes(jsonl(folder))
    (tmp_path / "b.jsonl").write_bytes(jsonl("b"))
    (tmp_path / "c.txt").write_text("c")
    (tmp_path / ".secret.jsonl").write_bytes(jsonl("secret"))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "README").write_text("no data")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    skipped, *found = rows(tmp_path)
    assert [row.parts.render() for row in found if isinstance(row, RawDocument)] == ["a", "b", "c", "sub"]
    assert isinstance(skipped, BadRow)
    assert (skipped.source, skipped.code) == (str(tmp_path), "skipped_files")
    assert skipped.reason == (
        "2 files not read: README (unknown ending); _temporary/x.jsonl (in a folder whose name begins with _)"
    )


def test_a_set_format_reads_unknown_endings_and_leaves_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(jsonl("a"))
    (tmp_path / "b.jsonl").write_bytes(jsonl("b"))
    (tmp_path / "c.md").write_text("# c")
    skipped, *found = rows(tmp_path, format="jsonl")
    assert [row.parts.render() for row in found if isinstance(row, RawDocument)] == ["a", "b"]
    assert isinstance(skipped, BadRow)
    assert "c.md (text, not jsonl)" in skipped.reason
    assert texts(tmp_path / "c.md", format="text") == ["# c"]


def test_links_that_leave_the_folder_are_not_followed_but_said(tmp_path: Path) -> None:
    outside, corpus = tmp_path / "outside", tmp_path / "corpus"
    outside.mkdir()
    corpus.mkdir()
    (outside / "secret.jsonl").write_bytes(jsonl("secret"))
    (corpus / ".blob").write_bytes(jsonl("inside"))
    (corpus / "a.jsonl").symlink_to(".blob")
    (corpus / "b.jsonl").symlink_to(outside / "secret.jsonl")
    (corpus / "c").symlink_to(outside)
    (corpus / "d.jsonl").symlink_to("nowhere")
    for named in (corpus, corpus / "*.jsonl"):
        skipped, *found = rows(named)
        assert [row.parts.render() for row in found if isinstance(row, RawDocument)] == ["inside"]
        assert isinstance(skipped, BadRow)
        assert "b.jsonl (a link that leaves the folder)" in skipped.reason
        assert "d.jsonl (no regular file)" in skipped.reason
    with pytest.raises(InputError, match=r"not read: c/secret\.jsonl: a link that leaves the folder"):
        read_corpus(spec(corpus / "*" / "*.jsonl"))
    # What the user names is what the user means, be it a link.
    (tmp_path / "named").symlink_to(outside)
    assert texts(tmp_path / "named") == ["secret"]


def test_patterns_several_paths_and_no_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "x").mkdir(parents=True)
    for name in ("data/b.jsonl", "data/a.jsonl", "data/x/c.jsonl", "data/[1].jsonl"):
        (tmp_path / name).write_bytes(jsonl(name))
    monkeypatch.chdir(tmp_path)
    assert texts("data/[1].jsonl") == ["data/[1].jsonl"]  # a file of that very name comes first
    assert texts("data/[ab].jsonl") == ["data/a.jsonl", "data/b.jsonl"]
    assert texts("data/**/c.jsonl", "data/b.jsonl", str(tmp_path / "data" / "b.jsonl"), "data/?.jsonl") == [
        "data/x/c.jsonl", "data/b.jsonl", "data/a.jsonl",
    ]  # fmt: skip
    assert [row.source for row in rows("data/[ab].jsonl")] == ["data/a.jsonl:1", "data/b.jsonl:1"]
    with pytest.raises(InputError, match="holds no file"):
        list_files(spec("data/*.csv"))


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone does not exist: name a file or folder that is there$"):
        read_corpus(spec(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"holds no file to read; known endings: \.jsonl"):
        read_corpus(spec(tmp_path))
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(InputError, match=r"no file to read \(not read: a.xlsx: unknown ending\)"):
        read_corpus(spec(tmp_path))
    with pytest.raises(InputError, match=r"does not tell its format; set input.format"):
        read_corpus(spec(tmp_path / "a.xlsx"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="is no regular file"):
        read_corpus(spec(tmp_path / "pipe.jsonl"))
    (tmp_path / "b.jsonl").write_bytes(b"\n\n")
    with pytest.raises(InputError, match="the corpus is empty"):
        rows(tmp_path / "b.jsonl")
    for address in ("gs://bucket/x", "s3://", "s3://key:secret@bucket/x", ""):
        with pytest.raises(InputError, match="cannot be read") as caught:
            read_corpus(spec(address))
        assert "secret@" not in str(caught.value)


PARQUET = b"PAR1" + bytes(100)
NOT_WHAT_THEY_SAY = [
    ("a.jsonl", PARQUET, "expected JSONL, found Parquet; rename it to end in .parquet"),
    ("a.jsonl", gzipped(jsonl("a")), "found gzip; rename it to end in .gz"),
    ("a.jsonl.gz", gzipped(PARQUET), "expected JSONL, found Parquet"),
    ("a.jsonl.gz", jsonl("a"), "expected gzip, found something else"),
    ("a.jsonl.gz", b"", "expected gzip, found nothing: the file is empty"),
    ("a.jsonl.zst", gzipped(jsonl("a")), "expected Zstandard, found gzip"),
    ("a.jsonl", b"[\n" + jsonl("a"), "one JSON value over the whole file"),
    ("a.jsonl", b'{\n  "text": "a"\n}\n', "one JSON value over the whole file"),
    ("a.jsonl", b"<!DOCTYPE html>\n<html>", "found HTML or XML"),
    ("a.jsonl", b"id,text\n" + b"1,words\n" * 20, "look like CSV or plain text"),
    ("a.jsonl", "ab".encode("utf-16"), "UTF-16"),
    ("a.jsonl", jsonl("abcdefgh").decode().encode("utf-16-le"), "binary data"),
    ("a.csv", jsonl("a"), "JSON Lines"),
    ("a.csv", b"PK\x03\x04....", "ZIP archive"),
    ("a.csv", b"", "is empty"),
    ("a.csv.gz", gzipped(b"text\nx\n" * 1000)[:14], "damaged"),
    ("a.parquet", jsonl("a"), r"expected Parquet, found text or data that begins with b'{\"text\""),
    ("a.parquet", b"", "found an empty file"),
    ("a.parquet", PARQUET, "cannot be read as Parquet"),
    ("a.parquet.gz", gzipped(jsonl("a")), "cannot be read as Parquet"),
]


@pytest.mark.parametrize(("name", "data", "says"), NOT_WHAT_THEY_SAY)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / "good.jsonl").write_bytes(jsonl("good"))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_corpus(spec(tmp_path / "good.jsonl", tmp_path / name))  # before the first row of any file
    assert says.replace("\\", "") in str(caught.value).replace("\\", "")
    assert name in str(caught.value)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_cut_file_gives_what_it_has_and_says_where_it_ends(tmp_path: Path, kind: str, packed: str) -> None:
    lines = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(60_000)]
    whole = jsonl(*lines) if kind == "jsonl" else "\n".join(["text", *lines]).encode()
    data: bytes = PACK[packed](whole)  # type: ignore[operator]
    (tmp_path / f"a.{kind}{packed}").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.jsonl").write_bytes(jsonl("the next file"))
    *found, bad, after = rows(tmp_path)
    assert isinstance(bad, BadRow)
    assert bad.code == "damaged_file"
    assert isinstance(after, RawDocument)
    assert after.parts.render() == "the next file"
    if kind != "txt":
        assert [row.parts.render() for row in found if isinstance(row, RawDocument)] == lines[: len(found)]
        assert len(found) > 10_000
        assert bad.source == f"{tmp_path}/a.{kind}{packed}:{len(found) + (1 if kind == 'jsonl' else 2)}"


def test_a_wrong_checksum_is_damage(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(jsonl("a")))
    data[-6] ^= 1
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    assert [row.code for row in rows(tmp_path) if isinstance(row, BadRow)] == ["damaged_file"]


def test_a_damaged_row_group_is_said_with_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {number}" for number in range(3000)]})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False)
    begin = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 200] = b"\xff" * 200
    path.write_bytes(data)
    (tmp_path / "b.txt").write_text("the next file")
    found = rows(tmp_path)
    (bad,) = [row for row in found if isinstance(row, BadRow)]
    assert (bad.code, bad.source) == ("damaged_file", f"{path}:1001")
    assert "rows 1001 to 2000 were not read" in bad.reason
    good = [row.source for row in found if isinstance(row, RawDocument)]
    assert good == [f"{path}:{row}" for row in (*range(1, 1001), *range(2001, 3001))] + [f"{tmp_path}/b.txt"]


def test_fingerprint_is_of_names_and_bytes_not_of_the_place(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "a.jsonl").write_bytes(jsonl("a"))
        (folder / "b.jsonl").write_bytes(jsonl("b"))
    print_of = fingerprint(spec(one))
    assert len(print_of) == 64
    assert fingerprint(spec(other)) == print_of
    (other / "b.jsonl").rename(other / "c.jsonl")
    assert fingerprint(spec(other)) != print_of
    (other / "c.jsonl").rename(other / "b.jsonl")
    (other / "b.jsonl").write_bytes(jsonl("b2"))
    assert fingerprint(spec(other)) != print_of
    assert fingerprint(spec(one / "b.jsonl", one / "x" / "a.jsonl")) != print_of


MEASURE = """
import resource, sys
from pipeline.storage.readers import read_corpus, BadRow
from schemas.job import InputSpec
spec = InputSpec(path=sys.argv[1], max_document_bytes=1 << 20)
for warm in read_corpus(InputSpec(path=sys.argv[2])): pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = [row.code if isinstance(row, BadRow) else "ok" for row in read_corpus(spec)]
print(",".join(seen), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "jsonl.gz", "csv.zst", "txt.gz", "parquet"])
def test_memory_is_bounded_whatever_the_file(tmp_path: Path, kind: str) -> None:
    """A line (or text, or column) of hundreds of megabytes, some of it packed into kilobytes, is not held in memory."""
    path, warm = tmp_path / f"a.{kind}", tmp_path / f"warm.{kind}"
    name, _, packing = kind.partition(".")
    before, after = {"jsonl": (b'{"text": "a"}\n', b'{"text": "z"}\n'), "csv": (b"text\na\n", b"z\n")}.get(
        name, (b"", b"")
    )
    pack = PACK["." + packing if packing else ""]
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["x"]}), warm)
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(path, schema, use_dictionary=False, compression="zstd") as writer:
            block = pa.table({"text": [hashlib.sha256(bytes([n])).hexdigest() * 1000 for n in range(100)]}, schema)
            writer.write_table(pa.concat_tables([block] * 40), row_group_size=4000)  # 256 MB in one row group
    else:
        warm.write_bytes(pack(before or b"x"))  # type: ignore[operator]
        filler = b"x" * (1 << 20)
        if packing == "gz":
            with gzip.open(path, "wb", compresslevel=1) as out:
                out.writelines([before, *[filler] * 256, b"\n", after])
        elif packing == "zst":
            with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
                for piece in [before, *[filler] * 256, b"\n", after]:
                    out.write(piece)
        else:
            with path.open("wb") as out:
                out.writelines([before, *[filler] * 256, b"\n", after])
    command = [sys.executable, "-c", MEASURE, str(path), str(warm)]
    seen, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    expected = {"txt": ["too_large"], "parquet": ["ok"] * 4000}.get(name, ["ok", "too_large", "ok"])
    assert seen.split(",") == expected
    assert int(grown) < (96 if kind == "parquet" else 24), "MiB"
