"""The comparison with the library's outputs: what it counts as matched, as a tie, as a mismatch."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from reference_models import DATA

from benchmarks import llmlingua_parity
from benchmarks.parity import ties
from benchmarks.parity.cases import Case, read_cases, same
from benchmarks.parity.random_model import TEXTS, save
from benchmarks.parity.scorer import Scoring
from benchmarks.parity.ties import Tie, Turning, find_tie

LONG = " ".join(TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("parity"), 1024)


@pytest.fixture(scope="module")
def scoring(folder: Path) -> Scoring:
    return Scoring(folder, "cpu", "float32", 4096)


def row(expected: Any, **kwargs: Any) -> dict[str, Any]:
    return {"id": "one", "family": "made up", "context": list(TEXTS), "instruction": "", "question": "Why?",
            "kwargs": {"iterative_size": 50, **kwargs}, "expected": expected}  # fmt: skip


def case_of(folder: Path, one: dict[str, Any]) -> Case:
    path = folder / "case.jsonl"
    path.write_text(json.dumps(one) + "\n", encoding="utf-8")
    return read_cases(path)[0]


def test_a_text_turned_at_close_decisions_is_a_tie_and_any_other_none(
    scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ties, "MARGIN", 0.02)  # of so short a text no decision is closer than 1e-4
    blank = case_of(tmp_path, row({}, target_token=150))
    (ours,) = scoring.compress([blank])
    assert ours is not None
    plain = Turning(frozenset())
    assert scoring.compress_exactly(blank, plain) == ours
    others = {
        place: text
        for place in plain.close
        if (text := scoring.compress_exactly(blank, Turning(frozenset({place})))) != ours
    }
    assert others
    for place, text in others.items():
        found = find_tie(case_of(tmp_path, row({"compressed_prompt": text}, target_token=150)), ours, scoring)
        assert isinstance(found, Tie)
        assert 0 < found.margin <= plain.close[place].margin
    monkeypatch.setattr(ties, "MARGIN", 0.0)
    text = next(iter(others.values()))
    found = find_tie(case_of(tmp_path, row({"compressed_prompt": text}, target_token=150)), ours, scoring)
    assert isinstance(found, str)
    assert "became" in found


def test_a_float32_result_that_float64_turns_is_a_tie(
    scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ties, "MARGIN", 0.02)
    blank = case_of(tmp_path, row({}, target_token=150))
    plain = Turning(frozenset())
    exact = scoring.compress_exactly(blank, plain)
    turned = [scoring.compress_exactly(blank, Turning(frozenset({place}))) for place in plain.close]
    case = case_of(tmp_path, row({"compressed_prompt": exact}, target_token=150))
    assert isinstance(find_tie(case, next(text for text in turned if text and text != exact), scoring), Tie)


@pytest.mark.parametrize("place", ["expected", "beside"])
def test_a_digest_stands_for_a_text(tmp_path: Path, place: str) -> None:
    digest = hashlib.sha256("naïve".encode()).hexdigest()
    one = row({"compressed_prompt_sha256": digest} if place == "expected" else {})
    case = case_of(tmp_path, one if place == "expected" else {**one, "compressed_prompt_sha256": digest})
    assert same(case, "naïve")
    assert not same(case, "naive")


def test_objects_are_compared_as_objects(tmp_path: Path) -> None:
    key = {"rate": 0.5, "compress": True, "value_type": "str", "pair_remove": False}
    value = {"b": "ü", "a": 1}
    digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    for expected in ({"compressed_prompt": value}, {"compressed_prompt_sha256": digest}):
        case = case_of(tmp_path, row(expected, json_config={"a": key, "b": key}))
        assert same(case, '{"b":  "ü", "a": 1}')
        assert not same(case, '{"b": "ü", "a": 2}')


@pytest.mark.parametrize(
    ("text", "options", "lack"),
    [
        ("one two", {"target_token": 40}, None),
        ("", {"target_token": 40}, "no text"),
        ("", {"target_token": 0}, "no text"),  # the question must stay, and there is room for it
        (LONG, {"target_token": 40}, "tokens, where 40 are the most"),
        ('{"a": 1}', {"target_token": 40, "json_config": {}}, None),
        ("{}", {"target_token": 0, "json_config": {}}, None),
        ('{"a": ', {"target_token": 40, "json_config": {}}, "no JSON object"),
        ("[1]", {"target_token": 40, "json_config": {}}, "no JSON object"),
    ],
)
def test_what_is_owed_where_the_library_raises(
    scoring: Scoring, tmp_path: Path, text: str, options: dict[str, Any], lack: str | None
) -> None:
    found = scoring.lacks(case_of(tmp_path, row({"error": "IndexError"}, **options)), text)
    assert (found is None) if lack is None else (lack in (found or ""))


def test_a_refusal_is_no_match(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({**row({"error": "IndexError"}), "context": [" "], "question": ""}) + "\n")
    assert run(monkeypatch, folder, path) == 1
    assert "mismatch  one: refused" in capsys.readouterr().out


def test_options_that_are_none_of_ours_are_no_match_and_stop_no_other_case(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads((DATA / "random.jsonl").read_text(encoding="utf-8").splitlines()[0])
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(row({}, no_such_option=1)) + "\n" + json.dumps(known) + "\n", encoding="utf-8")
    assert run(monkeypatch, folder, path) == 1
    said = capsys.readouterr().out
    assert "mismatch  one: refused, no_such_option: Extra inputs are not permitted" in said
    assert said.splitlines()[-1].split() == ["all", "1", "0", "2"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, path: Path, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llmlingua_parity", str(path), "--model", str(folder), "--device", "cpu", *more])
    with pytest.raises(SystemExit) as ended:
        llmlingua_parity.main()
    return int(ended.value.code or 0)


def test_the_command_counts_by_family(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (DATA / "random.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = [one for one in rows if one["window"] == 1024 and not one["kwargs"].get("use_sentence_level_filter")]
    plain = [json.dumps(one) + "\n" for one in mine[:6]]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(plain))
    assert run(monkeypatch, folder, path) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "6", "0", "6"]
    wrong = json.loads(plain[0]) | {"expected": {"compressed_prompt": "other"}, "family": "wrong"}
    path.write_text("".join(plain[1:]) + json.dumps(wrong) + "\n")
    assert run(monkeypatch, folder, path) == 1
    assert "mismatch  " in capsys.readouterr().out
    assert run(monkeypatch, folder, path, "--only", "wrong") == 1
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "0", "0", "1"]


def test_bad_files_are_named_with_their_line(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('\n{"id": "a", "family": "b"}\n')
    with pytest.raises(SystemExit, match="line 2: a case needs 'context'"):
        read_cases(path)
    path.write_bytes(b"\xff\n")
    for wrong in (path, tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(SystemExit, match="cannot be read"):
            read_cases(wrong)
