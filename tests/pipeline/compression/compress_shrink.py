"""The compress stage without a model (units drawn at random), and what must hold of whatever it writes."""

from __future__ import annotations

from typing import Any

from compress_models import document

from pipeline.models import ModelPool
from pipeline.stages import Outcome, Refusal, Result, Run, build
from schemas.document import PromptParts
from schemas.job import JobSpec


def shrink(target: str, parts: PromptParts, method: str = "random", **settings: Any) -> Outcome:
    """One prompt through the stage; ``target`` counts."""
    stage = {"kind": "compress", "method": method, "device": "cpu", **settings}
    job = {"input": {"path": "x"}, "target": {"model": target}, "stages": [stage]}
    (outcome,) = build(JobSpec.model_validate(job), 0).run([document(parts)], Run(ModelPool("cpu")))
    return outcome


def result(outcome: Outcome) -> Result:
    """What came out; a refusal fails the test and says why."""
    assert isinstance(outcome, Result), outcome
    return outcome


def compressed(outcome: Outcome) -> str:
    return str(result(outcome).fields["compressed"])


def subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(char in rest for char in short)


def check(parts: PromptParts, outcome: Outcome) -> None:
    """Budget, map, characters: what every method and setting owes."""
    if isinstance(outcome, Refusal):
        assert outcome.code in ("empty", "budget_too_small"), outcome
        return
    text, source, kept = compressed(outcome), parts.render(), outcome.fields["kept"]
    assert outcome.tokens_asked is not None
    assert outcome.tokens_out == outcome.fields["tokens_compressed"] <= outcome.tokens_asked
    begin, end = outcome.fields["listed"] or (0, 0)
    assert "".join(source[a:b] for a, b in zip(kept[::2], kept[1::2], strict=True)) == text[:begin] + text[end:]
    assert all(a < b for a, b in zip(kept[::2], kept[1::2], strict=True))
    assert all(end <= begin for end, begin in zip(kept[1::2], kept[2::2], strict=False))
    text.encode()
