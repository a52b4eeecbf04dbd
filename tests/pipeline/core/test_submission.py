"""Submitting and working through a job without a broker: what each table and file holds afterwards."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from by_hand import do, take, work_through
from sqlalchemy import Engine, func, select, update

from pipeline.producer import DoorbellSilentError, Submission, existing_job, identify, raise_budget, retune, submit
from pipeline.storage import shards
from pipeline.storage.jobs import cancel_job, find_job, resume_job
from pipeline.storage.readers import InputError
from pipeline.storage.reaping import lead, leader, resign, unring, unrung
from pipeline.watching import snapshot
from schemas.job import JobSpec
from schemas.tables import DocumentRow, Job, Part, Rejection, Shard, Usage


class Bell:
    """Remembers who rang."""

    def __init__(self, silent: bool = False) -> None:
        self.rung: list[tuple[str, str, str, str]] = []
        self.silent = silent

    def ring(self, job_id: str, shard_id: str, kind: str, priority: str) -> None:
        if self.silent:
            raise DoorbellSilentError("away")
        self.rung.append((job_id, shard_id, kind, priority))


def spec_of(tmp_path: Path, rows: list[Any], **changes: Any) -> JobSpec:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    raw = {
        "input": {"path": str(corpus)},
        "output": {"path": str(tmp_path / "out")},
        "stages": [{"kind": "copy"}],
        **changes,
    }
    return JobSpec.model_validate(raw)


def count(engine: Engine, table: type[Any], *where: Any) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def run(engine: Engine, spec: JobSpec, **options: Any) -> Submission:
    made = submit(engine, spec, Bell(), **options)
    work_through(engine, made.job_id)
    return made


def test_a_job_from_corpus_to_data(engine: Engine, tmp_path: Path) -> None:
    parts = {"instruction": "Add.", "question": "?"}
    rows = [{"id": f"d{i}", "contexts": ["1+1=2", f"{i}+0={i}"], **parts} for i in range(50)]
    made = run(engine, spec_of(tmp_path, rows), workers=2)
    assert (made.created, made.documents, made.rejected) == (True, 50, 0)
    job = find_job(engine, made.job_id)
    assert (job.state, job.documents) == ("done", 50)
    table = pq.read_table(Path(job.output) / "data")
    assert table["doc_id"].to_pylist() == [f"d{i}" for i in range(50)]
    assert table["text"][7].as_py() == "Add.\n\n1+1=2\n\n7+0=7\n\n?"
    assert table.schema.metadata[b"contextmill.job"].decode() == made.job_id
    assert count(engine, Usage) == count(engine, DocumentRow, DocumentRow.status == "done") == 50
    assert count(engine, Shard, Shard.stage == 0) >= 8, "four shards for each of two workers"
    shot = snapshot(engine, made.job_id)
    assert (shot.stages[0].documents, shot.stages[0].total, shot.shards_open) == (50, 50, 0)


def test_usage_names_the_row_of_the_part_that_holds_the_result(engine: Engine, tmp_path: Path) -> None:
    made = run(engine, spec_of(tmp_path, [{"id": f"d{i}", "text": f"text {i}"} for i in range(9)]))
    output = Path(find_job(engine, made.job_id).output)
    with engine.connect() as connection:
        for usage in connection.execute(select(Usage)):
            row = pq.read_table(output / usage.part).slice(usage.row, 1).to_pylist()[0]
            assert (row["seq"], row["content_hash"]) == (usage.seq, usage.content_hash)


def test_the_same_job_again_is_only_reported(engine: Engine, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, [{"text": "one"}, {"text": "two"}])
    first = run(engine, spec)
    bell = Bell()
    again = submit(engine, spec.model_copy(update={"name": "other"}), bell)
    assert (again.job_id, again.created, again.documents, bell.rung) == (first.job_id, False, 2, [])


def test_a_known_identity_spares_reading_the_corpus_twice(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, [{"text": "one"}])
    identity = identify(spec)
    assert existing_job(engine, identity) is None

    def again(*_: Any) -> None:
        raise AssertionError("the corpus' digest was made twice")

    monkeypatch.setattr("pipeline.producer.fingerprint", again)
    made = submit(engine, spec, Bell(), identity=identity)
    assert made.job_id == identity.job_id
    found = existing_job(engine, identity)
    assert found is not None
    assert found.stage_hashes == list(identity.stage_hashes)


def test_repeated_ids_collapse_or_clash_and_bad_rows_are_recorded(engine: Engine, tmp_path: Path) -> None:
    same = {"id": "a", "text": "1"}
    rows = [same, same, {"id": "a", "text": "2"}, "{nope", {"id": "b", "text": ""}]
    made = run(engine, spec_of(tmp_path, rows))
    assert (made.documents, made.collapsed, made.rejected) == (1, 1, 3)
    with engine.connect() as connection:
        found = {row.code: row for row in connection.execute(select(Rejection))}
    assert found["clashing_id"].source.endswith("corpus.jsonl:3")
    assert "corpus.jsonl:1" in found["clashing_id"].reason
    assert found["invalid_json"].source.endswith("corpus.jsonl:4")
    assert found["empty"].source.endswith("corpus.jsonl:5")
    refused = pq.read_table(Path(find_job(engine, made.job_id).output) / "rejections.parquet")
    assert set(refused["code"].to_pylist()) == {"clashing_id", "invalid_json", "empty"}


def test_tomorrow_costs_only_what_is_new(engine: Engine, tmp_path: Path) -> None:
    rows: list[Any] = [{"id": f"d{i}", "text": f"text {i}"} for i in range(200)]
    first = run(engine, spec_of(tmp_path, rows))
    second = run(engine, spec_of(tmp_path, [*rows, {"id": "new", "text": "new"}, {"id": "d0-copy", "text": "text 0"}]))
    assert second.job_id != first.job_id
    assert count(engine, Usage, Usage.job_id == second.job_id, Usage.reused_from == first.job_id) == 201
    assert count(engine, Usage, Usage.job_id == second.job_id, Usage.reused_from.is_(None)) == 1
    table = pq.read_table(Path(find_job(engine, second.job_id).output) / "data")
    assert table["doc_id"].to_pylist()[-2:] == ["new", "d0-copy"]
    assert table["text"].to_pylist()[-1] == "text 0"


def test_results_whose_files_are_gone_are_made_again(engine: Engine, tmp_path: Path) -> None:
    rows: list[Any] = [{"id": f"d{i}", "text": f"text {i}"} for i in range(5)]
    first = run(engine, spec_of(tmp_path, rows))
    for part in (Path(find_job(engine, first.job_id).output) / "_parts").iterdir():
        part.unlink()
    second = run(engine, spec_of(tmp_path, [*rows, {"text": "new"}]))
    assert count(engine, Usage, Usage.job_id == second.job_id, Usage.reused_from.is_(None)) == 6


def test_a_corpus_that_is_all_refused_still_has_columns(engine: Engine, tmp_path: Path) -> None:
    made = run(engine, spec_of(tmp_path, ["{nope}", "{nope}"]))
    table = pq.read_table(Path(find_job(engine, made.job_id).output) / "data")
    assert table.num_rows == 0
    assert "doc_id" in table.column_names


def test_an_empty_corpus_makes_no_job(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        submit(engine, spec_of(tmp_path, []), Bell())
    assert count(engine, Job) == 0


def test_a_silent_bell_leaves_the_shards_to_the_reaper(engine: Engine, tmp_path: Path) -> None:
    made = submit(engine, spec_of(tmp_path, [{"text": "one"}]), Bell(silent=True))
    assert [due.job_id for due in unrung(engine)] == [made.job_id]


def test_a_submission_cut_off_goes_on_and_makes_the_same_rows(engine: Engine, tmp_path: Path) -> None:
    rows: list[Any] = [{"id": f"d{i}", "text": f"text {i}"} for i in range(40)]
    spec = spec_of(tmp_path, [*rows, "{bad", {"id": "d0", "text": "clash"}])

    class CutError(Exception):
        pass

    class Brittle(Bell):
        def ring(self, job_id: str, shard_id: str, kind: str, priority: str) -> None:
            super().ring(job_id, shard_id, kind, priority)
            if len(self.rung) == 3:
                raise CutError

    with pytest.raises(CutError):
        submit(engine, spec, Brittle(), workers=2)
    assert 0 < count(engine, Shard) < 8
    made = submit(engine, spec, Bell(), workers=2)
    assert made.created
    work_through(engine, made.job_id)
    assert count(engine, Usage) == count(engine, DocumentRow, DocumentRow.status == "done") == 40
    assert count(engine, Rejection) == 2
    assert count(engine, Part, Part.stage == -1) == count(engine, Shard, Shard.stage == 0)


def test_a_cancelled_job_gives_nothing_to_claim_until_it_is_resumed(engine: Engine, tmp_path: Path) -> None:
    made = submit(engine, spec_of(tmp_path, [{"text": f"{i}"} for i in range(12)]), Bell(), workers=1)
    assert cancel_job(engine, made.job_id)
    assert not cancel_job(engine, made.job_id)
    assert shards.claim(engine, made.job_id, "0-0-3", "test", 60.0) is None
    unring(engine, made.job_id)
    assert unrung(engine) == []
    assert resume_job(engine, made.job_id)
    work_through(engine, made.job_id)
    assert find_job(engine, made.job_id).state == "done"
    assert not resume_job(engine, made.job_id)


def test_a_network_error_passes_and_a_full_disk_stops_the_job(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = submit(engine, spec_of(tmp_path, [{"text": "one"}]), Bell())
    errors = iter([OSError("curl: connection reset"), OSError(errno.ENOSPC, "No space left on device")])

    def fail(*_: Any, **__: Any) -> None:
        raise next(errors)

    monkeypatch.setattr("pipeline.shard_rows.write_part", fail)
    for ending, state in (("failed", "running"), ("halted", "stopped")):
        with engine.begin() as connection:
            connection.execute(update(Shard).values(not_before=None))
        assert do(engine, take(engine, made.job_id, "0-0-1")) == ending
        assert find_job(engine, made.job_id).state == state
    monkeypatch.undo()
    assert resume_job(engine, made.job_id)
    work_through(engine, made.job_id)
    assert find_job(engine, made.job_id).state == "done"


def test_a_higher_budget_counts_and_a_lower_one_does_not(engine: Engine, tmp_path: Path) -> None:
    def spec(usd: str) -> JobSpec:
        stage = {"kind": "generate", "backend": "openai", "budget_usd": usd, "max_new_tokens": 1}
        target = {"model": "gpt-4.1-mini", "prices": ["openai:gpt-4.1-mini"]}
        return spec_of(tmp_path, [{"text": "one"}], stages=[stage], target=target)

    made = submit(engine, spec("1.50"), Bell())
    assert not raise_budget(engine, spec("1.5"), made.job_id)
    assert not raise_budget(engine, spec("0.5"), made.job_id)
    assert raise_budget(engine, spec("2"), made.job_id)


def test_settings_of_speed_can_be_mended_in_a_job_that_stands(engine: Engine, tmp_path: Path) -> None:
    """They make no other job, so a device that is not there would stop it again and again."""

    def spec(**settings: Any) -> JobSpec:
        stage = {"kind": "generate", "backend": "openai", "budget_usd": "1.50", "max_new_tokens": 1, **settings}
        target = {"model": "gpt-4.1-mini", "prices": ["openai:gpt-4.1-mini"]}
        return spec_of(tmp_path, [{"text": "one"}], stages=[stage], target=target)

    made = submit(engine, spec(device="cuda"), Bell())
    assert not retune(engine, spec(device="cuda"), made.job_id)
    assert retune(engine, spec(device="cpu", concurrency=2, budget_usd="9"), made.job_id)
    assert not retune(engine, spec(device="cpu", concurrency=2), made.job_id)
    (stage,) = find_job(engine, made.job_id).spec["stages"]
    assert (stage["device"], stage["concurrency"], stage["budget_usd"]) == ("cpu", 2, "1.50")
    assert submit(engine, spec(), Bell()) == Submission(made.job_id, False, 1, 0, 0)


def test_one_leads_until_it_resigns_or_its_time_is_over(engine: Engine) -> None:
    assert lead(engine, "reaper", "one", 60.0)
    assert lead(engine, "reaper", "one", 60.0)
    assert not lead(engine, "reaper", "two", 60.0)
    resign(engine, "reaper", "two")
    assert leader(engine, "reaper") == "one"
    resign(engine, "reaper", "one")
    assert lead(engine, "reaper", "two", 0.0)
    time.sleep(0.01)
    assert lead(engine, "reaper", "one", 60.0)
