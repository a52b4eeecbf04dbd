"""What a job will take, before anything is spent: tokens, money, worker seconds, memory.

Loads no model, opens no connection. Every number says in ``notes`` what it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pipeline.accounting.savings import Removed, Saving, savings, targets_of
from pipeline.accounting.speeds import Measured
from pipeline.accounting.stage_estimate import Flow, StageEstimate, estimate_stage
from pipeline.accounting.wording import counted
from pipeline.models.ref import ModelError
from schemas.job import JobSpec
from schemas.records import ANSWER_DECIDES, SHORTENING
from schemas.settings import Settings

CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A job before it runs; stored with it, and shown in the report beside what happened.

    ``seconds`` is worker time over all stages, ``memory_bytes`` a worker's peak; both are ``None`` where a stage's is
    unknown. Money is that of hosted calls: ``None`` where there are none, or where a price is unknown.
    """

    documents: int
    characters: int
    tokens: int
    stages: tuple[StageEstimate, ...]
    seconds: float | None
    memory_bytes: int | None
    expected_microusd: int | None
    worst_microusd: int | None
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return asdict(self)


def estimate(
    job: JobSpec,
    documents: int,
    characters: int,
    *,
    sample: Sequence[str] = (),
    measured: Mapping[int, Measured] | None = None,
    when: date | None = None,
    settings: Settings | None = None,
) -> Estimate:
    """Estimate a job over so many documents with so many characters in all.

    ``sample``, a few of the texts, has characters per token counted with the target's tokenizer, where that is on this
    machine. ``measured`` (``speeds.measured``) replaces the built-in rates.
    """
    settings, day = settings or Settings(), when or datetime.now(UTC).date()
    per_token, note = _characters_per_token(job, sample, settings)
    flow = Flow(documents, round(characters / per_token))
    stages: list[StageEstimate] = []
    for index in range(len(job.stages)):
        stages.append(estimate_stage(job, index, flow, (measured or {}).get(index), day, settings))
        if stages[-1].kind in SHORTENING:
            flow = Flow(documents, stages[-1].tokens_out)
    hosted = [stage for stage in stages if stage.hosted]
    return Estimate(
        documents=documents,
        characters=characters,
        tokens=round(characters / per_token),
        stages=tuple(stages),
        seconds=_all([stage.seconds for stage in stages], sum),
        memory_bytes=_all([stage.memory_bytes for stage in stages], max),
        expected_microusd=_all([stage.expected_microusd for stage in hosted], sum),
        worst_microusd=_all([stage.worst_microusd for stage in hosted], sum),
        savings=_savings(job, stages, day, settings.price_table),
        notes=(note, *_copies(job), *_reuse(job)),
    )


def _copies(job: JobSpec) -> list[str]:
    return [f"every document counts once at each of {len(job.rates)} rates"] if job.rates else []


def _reuse(job: JobSpec) -> list[str]:
    if all(stage.kind in ANSWER_DECIDES for stage in job.stages):
        return []
    taken = ["documents that an earlier job has done are taken over, for no time and no money"]
    if any(stage.kind == "encode" for stage in job.stages):
        taken.append("so are the slots of contexts that were encoded for other prompts; all contexts are counted here")
    return taken


def _savings(job: JobSpec, stages: Sequence[StageEstimate], day: date, table: Path | None) -> tuple[Saving, ...]:
    compress = next((stage for stage in stages if stage.kind in SHORTENING), None)
    if compress is None:
        return ()
    removed = Removed(compress.tokens_in, compress.tokens_out, compress.seconds or 0.0)
    return savings(targets_of(job), removed, job.target.gpu_usd_per_hour, day, table)


def _all(values: Sequence[Any], combine: Any) -> Any:
    """The values combined; None if there are none, or one of them is unknown."""
    return combine(values) if values and None not in values else None


def _characters_per_token(job: JobSpec, sample: Sequence[str], settings: Settings) -> tuple[float, str]:
    default = CHARACTERS_PER_TOKEN, f"{CHARACTERS_PER_TOKEN:g} characters per token are assumed"
    if not any(sample) or all(stage.kind == "copy" for stage in job.stages):  # a tokenizer is 40 MB, here for nothing
        return default
    from tokenizers import Tokenizer

    from pipeline.models import resolve

    name = job.target.tokenizer_model
    try:
        path = resolve(name, settings, weights=False).folder / "tokenizer.json"
    except (ModelError, OSError):
        return default
    if not path.is_file():
        return default
    try:
        tokens = sum(len(item.ids) for item in Tokenizer.from_file(str(path)).encode_batch(list(sample)))
    except Exception as error:  # noqa: BLE001 - it raises bare ones; the job itself stops with what is wrong
        return CHARACTERS_PER_TOKEN, f"{default[1]}: the tokenizer of {name} cannot be read ({error})"
    ratio = sum(map(len, sample)) / max(1, tokens)
    on = counted(len(sample), "document")
    return ratio, f"{ratio:.2f} characters per token, counted on {on} with the tokenizer of {name}"
