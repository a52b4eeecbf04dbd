"""Rows of every format: what becomes a document, and what becomes a bad row that says where and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.readers import BadRow, InputError, RawDocument, read_corpus
from schemas.document import PromptParts
from schemas.job import Columns, InputSpec


def rows(path: Path, **settings: Any) -> list[RawDocument | BadRow]:
    return list(read_corpus(InputSpec(path=(str(path),), **settings)))


def documents(path: Path, **settings: Any) -> list[RawDocument]:
    found = rows(path, **settings)
    assert [row for row in found if isinstance(row, BadRow)] == []
    return [row for row in found if isinstance(row, RawDocument)]


def write(path: Path, *lines: bytes | str) -> Path:
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


FULL = {"id": "a", "instruction": "Add.", "contexts": ["1+1=2", "2+2=4"], "question": "3+3?", "answer": "6"}
PARTS = PromptParts("Add.", ("1+1=2", "2+2=4"), "3+3?")


def test_own_columns_decide(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        json.dumps(FULL),
        "",
        '{"text": "plain", "id": 7, "question": "not read beside text"}',
        '   {"question": "alone", "other": NaN}',
        '{"contexts": "one string", "answer": null}',
    )
    assert documents(path) == [
        RawDocument("a", PARTS, "6", f"{path}:1"),
        RawDocument("7", PromptParts(contexts=("plain",)), None, f"{path}:3"),
        RawDocument(None, PromptParts(question="alone"), None, f"{path}:4"),
        RawDocument(None, PromptParts(contexts=("one string",)), None, f"{path}:5"),
    ]


def test_a_mapping_reads_what_it_names_and_no_more(tmp_path: Path) -> None:
    row = {"uid": 3, "passages": ["p"], "q": "q?", "instruction": "unnamed", "gold": "g", "text": "unnamed"}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    columns = Columns(id="uid", contexts="passages", question="q", answer="gold")
    assert documents(path, columns=columns) == [RawDocument("3", PromptParts("", ("p",), "q?"), "g", f"{path}:1")]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_several_right_answers_are_kept_as_a_json_list(tmp_path: Path, kind: str) -> None:
    path, row = tmp_path / f"a.{kind}", {"text": "When?", "answer": ["2019", "im März"]}
    if kind == "jsonl":
        write(path, json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    assert [document.answer for document in documents(path)] == ['["2019", "im März"]']


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parquet_reads_as_jsonl_does(tmp_path: Path, kind: str) -> None:
    table = [FULL, {**FULL, "id": None, "instruction": None, "answer": None}, {**FULL, "contexts": []}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, *map(json.dumps, table))
    else:
        pq.write_table(pa.Table.from_pylist(table), path)
    assert documents(path) == [
        RawDocument("a", PARTS, "6", f"{path}:1"),
        RawDocument(None, PromptParts("", PARTS.contexts, "3+3?"), None, f"{path}:2"),
        RawDocument("a", PromptParts("Add.", (), "3+3?"), "6", f"{path}:3"),
    ]


BAD_LINES: list[tuple[bytes, str, str]] = [
    (b'{"text": "cut', "invalid_json", "column 10"),
    (b"plain words", "invalid_json", "column 1"),
    (b"[1, 2]", "not_an_object", "[1, 2]"),
    (b'"a string"', "not_an_object", "a string"),
    (b"[" * 50_000, "invalid_json", "nested"),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "invalid_json", "4300"),
    (b'{"text": "a", "text": "b"}', "duplicate_key", "twice"),
    (b'{"other": 1}', "missing_column", "other"),
    (b'{"text": 5}', "wrong_type", "a number (5)"),
    (b'{"text": true}', "wrong_type", "a boolean"),
    (b'{"text": ["a"]}', "wrong_type", "a list"),
    (b'{"text": null}', "empty", "no text"),
    (b'{"text": ""}', "empty", "no text"),
    (b'{"text": " \\n\\t\\u3000"}', "empty", "white space"),
    (b'{"contexts": [" ", ""], "question": ""}', "empty", "no text"),
    (b'{"contexts": ["a", 3]}', "wrong_type", "item 1"),
    (b'{"contexts": {"a": "b"}}', "wrong_type", "an object"),
    (b'{"question": ["q"]}', "wrong_type", "'question'"),
    (b'{"text": "x", "answer": ["a", 1]}', "wrong_type", "'answer'"),
    (b'{"text": "x", "id": 1.5}', "wrong_type", "1.5"),
    (b'{"text": "x", "id": true}', "wrong_type", "a boolean"),
    (b'{"text": "x", "id": "a\\u0000b"}', "bad_id", "\\x00"),
    (b'{"text": "x", "id": "' + b"i" * 513 + b'"}', "bad_id", "513"),
    (b'{"text": "half \\ud800 pair"}', "invalid_text", "surrogate"),
    (b'{"text": "x", "id": "\\udfff"}', "bad_id", "\\udfff"),
    (b'{"text": "\xff\xfe"}', "invalid_utf8", "byte 11"),
    (b'{"text": "' + b"x" * 90_000 + b'"}', "too_large", "65536"),
]


@pytest.mark.parametrize(("line", "code", "says"), BAD_LINES)
def test_a_bad_line_is_one_bad_row(tmp_path: Path, line: bytes, code: str, says: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "before"}', line, '{"text": "after"}')
    before, bad, after = rows(path, max_document_bytes=65_536)
    assert isinstance(bad, BadRow)
    assert (bad.source, bad.code) == (f"{path}:2", code)
    assert says in bad.reason
    assert len(bad.reason) < 300
    (bad.reason + bad.source).encode()  # storable
    assert [before, after] == [
        RawDocument(None, PromptParts(contexts=("before",)), None, f"{path}:1"),
        RawDocument(None, PromptParts(contexts=("after",)), None, f"{path}:3"),
    ]


def test_a_bad_row_names_the_document_it_would_have_been(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "d1", "text": " "}', '{"id": 2, "text": 3}')
    assert [row.doc_id for row in rows(path) if isinstance(row, BadRow)] == ["d1", "2"]


def test_a_mapped_column_a_row_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"body": "x"}', '{"text": "y"}')
    good, bad = rows(path, columns=Columns(text="body"))
    assert isinstance(good, RawDocument)
    assert isinstance(bad, BadRow)
    assert bad == BadRow(f"{path}:2", "missing_column", "no column 'body'; there are: text")


BOTH = Columns(text="body", contexts="input", question="prompt", answer="said")


def test_texts_beside_rows_of_parts(tmp_path: Path) -> None:
    """Where both are named, each row is the one or the other, by what it holds."""
    path = write(
        tmp_path / "a.jsonl",
        '{"input": "c", "prompt": "q", "said": "a", "body": ""}',
        '{"body": "t", "prompt": null}',
    )
    asked, text = documents(path, columns=BOTH)
    assert (asked.parts, asked.answer) == (PromptParts(contexts=("c",), question="q"), "a")
    assert (text.parts, text.answer) == (PromptParts(contexts=("t",)), None)
    (tmp_path / "b.csv").write_text("body,n\nu,1\n")
    (tmp_path / "c.csv").write_text("input,prompt,said\nd,r,b\n")
    (tmp_path / "d.csv").write_text("body,input,prompt,said\nu,,,\n,d,r,b\n")
    pq.write_table(
        pa.table({"body": ["u", None], "input": [None, "d"], "prompt": [None, "r"], "said": [None, "b"]}),
        tmp_path / "e.parquet",
    )
    texts, parts = PromptParts(contexts=("u",)), PromptParts(contexts=("d",), question="r")
    found = {"b.csv": [texts], "c.csv": [parts], "d.csv": [texts, parts], "e.parquet": [texts, parts]}
    for name, expected in found.items():
        assert [one.parts for one in documents(tmp_path / name, columns=BOTH)] == expected, name


def test_rows_that_are_neither_text_nor_parts_or_both(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"input": "c"}', "{}", '{"body": "t", "prompt": "q"}', '{"body": "", "said": "a"}'
    )
    found = [(one.code, one.reason) for one in rows(path, columns=BOTH) if isinstance(one, BadRow)]
    assert found == [
        ("missing_column", "no column 'body' and no column 'prompt' and no column 'said'; there are: input"),
        (
            "missing_column",
            "no column 'body' and no column 'input' and no column 'prompt' and no column 'said'; there are: none",
        ),
        ("text_and_parts", "columns 'body' and 'prompt' both hold something: which is the prompt?"),
        ("missing_column", "no column 'body' and no column 'input' and no column 'prompt'; there are: said"),
    ]
    (tmp_path / "b.csv").write_text("input,n\nc,1\n")
    with pytest.raises(
        InputError, match="no column 'body' and no column 'prompt' and no column 'said'; there are: input, n"
    ):
        documents(tmp_path / "b.csv", columns=BOTH)


def test_an_empty_list_of_answers_is_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x", "answer": []}', '{"text": "y", "answer": ["a"]}')
    assert [one.answer for one in documents(path)] == [None, '["a"]']


def test_byte_order_mark_line_ends_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert [(d.parts.contexts, d.source) for d in documents(path)] == [(("a",), f"{path}:1"), (("b",), f"{path}:3")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_limit_is_exact(tmp_path: Path, end: bytes) -> None:
    row = b'{"text": "%s"}'
    path = tmp_path / "a.jsonl"
    path.write_bytes(row % (b"x" * 88) + b"\n" + row % (b"x" * 89) + b"\n" + row % (b"y" * 88) + end)
    codes = [row.code if isinstance(row, BadRow) else "ok" for row in rows(path, max_document_bytes=100)]
    assert codes == ["ok", "too_large", "ok"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,question,contexts,answer\r\n"
        b'1,"who, and\nwhy?","the ""context""",\r\n'
        b"\r\n"
        b"2,short\r\n"
        b',q3,c3,"a\0b"\r\n'
        b'4,"bad"quote,c,a\r\n'
        b"5,\xff,c,a\r\n"
        b"6,,,\r\n"
        b"7,q7,c7,a7"
    )
    found = {row.source.rpartition(":")[2]: row for row in rows(path)}
    good = {line: row for line, row in found.items() if isinstance(row, RawDocument)}
    assert good == {
        "2": RawDocument("1", PromptParts("", ('the "context"',), "who, and\nwhy?"), None, f"{path}:2"),
        "6": RawDocument(None, PromptParts("", ("c3",), "q3"), "a\0b", f"{path}:6"),
        "10": RawDocument("7", PromptParts("", ("c7",), "q7"), "a7", f"{path}:10"),
    }
    codes = {line: row.code for line, row in found.items() if isinstance(row, BadRow)}
    assert codes == {"5": "wrong_width", "7": "invalid_csv", "8": "invalid_utf8", "9": "empty"}


def test_a_quote_never_closed_is_said_and_costs_no_row_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text", '1,"open', *(f"{i},row" for i in range(2, 60)))
    found = rows(path, max_document_bytes=100)
    assert isinstance(found[0], BadRow)
    assert (found[0].source, found[0].code) == (f"{path}:2", "too_large")
    assert "lines 2 to " in found[0].reason
    last = int(found[0].reason.split("lines 2 to ")[1].split()[0])
    assert [row.source for row in found[1:]] == [f"{path}:{line}" for line in range(last + 1, 61)]
    (whole,) = rows(path)
    assert isinstance(whole, BadRow)
    assert whole.code == "invalid_csv"
    assert "lines 2 to 60" in whole.reason


def test_a_huge_csv_field_and_a_line_too_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text", "1," + "x" * 300_000, "2," + "y" * 3_000_000, "3,z")
    first, second, third = rows(path, max_document_bytes=2_000_000)
    assert isinstance(first, RawDocument)
    assert len(first.parts.contexts[0]) == 300_000
    assert isinstance(second, BadRow)
    assert (second.code, second.source) == ("too_large", f"{path}:3")
    assert isinstance(third, RawDocument)
    assert third.id == "3"


def test_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "id\ttext", "1\ta, b")
    assert documents(path)[0].parts.contexts == ("a, b",)


def test_text_files_keep_every_byte(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("# head\n\nbody \n")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    (tmp_path / "c.txt").write_bytes(b" \n")
    (tmp_path / "d.txt").write_bytes(b"")
    (tmp_path / "e.txt").write_bytes(b"ok \xff")
    (tmp_path / "f.txt").write_bytes(b"%PDF-1.7 ...")
    (tmp_path / "g.txt").write_bytes(b"x" * 101)
    found = rows(tmp_path, max_document_bytes=100)
    assert [row.source.removeprefix(f"{tmp_path}/") for row in found] == [
        "a.txt", "b/x.md", "c.txt", "d.txt", "e.txt", "f.txt", "g.txt",
    ]  # fmt: skip
    assert [row.parts.contexts[0] for row in found if isinstance(row, RawDocument)] == ["one\r\n", "# head\n\nbody \n"]
    codes = [row.code for row in found if isinstance(row, BadRow)]
    assert codes == ["empty", "empty", "invalid_utf8", "not_text", "too_large"]


def test_parquet_values_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([b"good", b"\xff\xfe", None, b"  ", b"x" * 101]).cast(pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())  # unchecked, as other writers do
    pq.write_table(pa.table({"text": column, "id": pa.array([1, 2, None, 4, 5])}), path)
    found = rows(path, max_document_bytes=100)
    assert found[0] == RawDocument("1", PromptParts(contexts=("good",)), None, f"{path}:1")
    bad = [(row.source, row.code) for row in found if isinstance(row, BadRow)]
    codes = ["invalid_utf8", "empty", "empty", "too_large"]
    assert bad == [(f"{path}:{index}", code) for index, code in enumerate(codes, 2)]


@pytest.mark.parametrize(
    "array", [pa.array(["x"] * 3).dictionary_encode(), pa.array(["x"] * 3, pa.large_string())], ids=["dict", "large"]
)
def test_every_kind_of_string_column(tmp_path: Path, array: Any) -> None:
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    assert [d.parts.contexts for d in documents(tmp_path / "a.parquet")] == [("x",)] * 3


def test_columns_missing_from_a_header_name_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    write(tmp_path / "a.csv", "body,n", "x,1")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(InputError, match=r"no column 'text'.*there are: body, n"):
            read_corpus(InputSpec(path=(str(tmp_path / name),)))
        with pytest.raises(InputError, match="no column 'content'; there are: body, n"):
            read_corpus(InputSpec(path=(str(tmp_path / name),), columns=Columns(text="content")))
        assert documents(tmp_path / name, columns=Columns(text="body"))[0].parts.contexts == ("x",)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_fields_are_parted_by_what_the_header_has_where_it_has_no_comma(tmp_path: Path, mark: str) -> None:
    path = write(
        tmp_path / "a.csv", f'id{mark}text{mark}"answer"', f'1{mark}"a{mark}b, c"{mark}d', f"2{mark}e, f{mark}"
    )
    assert [(d.id, d.parts.contexts, d.answer) for d in documents(path)] == [
        ("1", (f"a{mark}b, c",), "d"),
        ("2", ("e, f",), None),
    ]


def test_a_parquet_column_of_another_type_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1.5]}), path)
    with pytest.raises(InputError, match="column 'text' holds double, not strings"):
        rows(path)
    pq.write_table(pa.table({"text": ["x"], "id": [1.5]}), path)
    with pytest.raises(InputError, match="column 'id' holds double, not strings or whole numbers"):
        rows(path)
    pq.write_table(pa.table({"contexts": [[1]]}), path)
    with pytest.raises(InputError, match="column 'contexts' holds list"):
        rows(path)


def test_a_column_twice_in_a_csv_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,id,text", "a,1,b")
    with pytest.raises(InputError, match="'text' stands twice"):
        rows(path)
