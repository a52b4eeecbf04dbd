"""One job, several rates: every document once at each of them, side by side."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.producer import copies as copies_of
from pipeline.storage.readers import RawDocument
from schemas.document import PromptParts
from schemas.job import JobSpec

RAW = RawDocument("a", PromptParts(contexts=("some text",)), None, "corpus.jsonl:1")


def job(**settings: object) -> JobSpec:
    stage = {"kind": "compress", **settings}
    return JobSpec.model_validate({"input": {"path": "x"}, "stages": [stage]})


def test_copies_of_a_row_differ_in_id_source_hash_and_rate() -> None:
    copies = list(copies_of(RAW, job(rates=[0.5, 0.33]).rates))
    assert [(one.id, one.source, one.rate) for one in copies] == [
        ("a@0.5", "corpus.jsonl:1 at rate 0.5", 0.5),
        ("a@0.33", "corpus.jsonl:1 at rate 0.33", 0.33),
    ]
    assert len({one.content_hash for one in copies}) == 2
    assert [one.parts for one in copies] == [RAW.parts] * 2


def test_without_rates_a_row_is_one_document() -> None:
    (only,) = copies_of(RAW, job(rate=0.5).rates)
    assert (only.id, only.source, only.rate) == ("a", "corpus.jsonl:1", None)
    assert only.content_hash == RAW.parts.content_hash()


@pytest.mark.parametrize(
    "settings",
    [{"rates": [0.5, 0.5]}, {"rates": [0.3333333, 0.33333333]}, {"rates": [0.5], "rate": 0.5}, {"rates": []}, {}],
)
def test_there_is_one_budget_and_no_rate_twice(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="rates"):
        job(**settings)
