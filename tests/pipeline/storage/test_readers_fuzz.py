"""Whatever the bytes: no crash, nothing skipped, every place once, every reason storable."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.storage.readers import BadRow, InputError, RawDocument, read_corpus
from schemas.job import InputSpec

SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
PIECES = [
    b'{"text": "a"}',
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"x" * 70,
    "ü".encode(),
]
soup = st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=30).map(b"".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda v: st.lists(v, max_size=3)
)
objects = st.dictionaries(st.sampled_from(["id", "text", "instruction", "contexts", "question", "answer"]), values)


def outcomes(path: Path) -> list[RawDocument | BadRow]:
    found = list(read_corpus(InputSpec(path=(str(path),), max_document_bytes=60)))
    assert len({row.source for row in found}) == len(found)
    for row in found:
        if isinstance(row, BadRow):
            assert row.code
            assert "\0" not in row.reason + row.source
            (row.reason + row.source + (row.doc_id or "")).encode()
        else:
            assert row.parts.render().strip()
            (row.parts.render() + (row.id or "") + (row.answer or "")).encode()
    return found


def lines_of(data: bytes) -> int:
    return sum(1 for line in data.split(b"\n") if line.strip())


@SETTINGS
@given(soup)
def test_every_line_of_jsonl_has_one_outcome(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + data)
    try:
        assert len(outcomes(path)) == 1 + lines_of(data)
    except InputError as error:
        assert "found binary data" in str(error)


@SETTINGS
@given(st.lists(objects, min_size=1, max_size=5))
def test_every_object_has_one_outcome(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(outcomes(path)) == len(rows)


@SETTINGS
@given(soup)
def test_csv_and_text_never_crash(tmp_path: Path, data: bytes) -> None:
    for name, begin in (("a.csv", b"text,id\n"), ("a.txt", b"")):
        (tmp_path / name).write_bytes(begin + data)
        try:
            outcomes(tmp_path / name)
        except InputError as error:
            assert "corpus is empty" in str(error) or "found binary data" in str(error)


@SETTINGS
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=4))
def test_damage_anywhere_in_a_packed_file_is_told(tmp_path: Path, place: int, garbage: bytes) -> None:
    lines = [b'{"text": "number %d"}\n' % number for number in range(50)]
    data = bytearray(gzip.compress(b"".join(lines)))
    place = 10 + place % (len(data) - 10 - len(garbage))  # behind the header: its time and name are no content
    if data[place : place + len(garbage)] == garbage:
        return
    data[place : place + len(garbage)] = garbage
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    try:
        found = outcomes(path)
    except InputError as error:
        assert "is not what its name says" in str(error)
        return
    # Unless only padding bits were hit, and all is there.
    whole = [f"number {number}" for number in range(50)]
    texts = [row.parts.render() for row in found if isinstance(row, RawDocument)]
    assert any(isinstance(row, BadRow) for row in found) or texts == whole


@pytest.mark.parametrize("field", [0, 1])
@pytest.mark.parametrize("opened", range(10))
def test_a_quote_not_closed_never_merges_rows_in_silence(tmp_path: Path, opened: int, field: int) -> None:
    rows = [[str(number), f"text {number}"] for number in range(10)]
    rows[opened][field] = '"' + rows[opened][field]
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "".join(",".join(row) + "\n" for row in rows))
    found = outcomes(path)
    assert any(isinstance(row, BadRow) for row in found)
    for row in found:
        assert isinstance(row, BadRow) or "\n" not in row.parts.render()
