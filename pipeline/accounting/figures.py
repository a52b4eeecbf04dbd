"""The figures of a job's summary: plain frozen values, JSON-able, no SQL. Money in micro-dollars, time in seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.accounting.savings import Saving

BINS = 50
"""Bins of the ratio histograms: bin ``i`` holds ratios in [i/50, (i+1)/50); bin 50 is exactly 1 (copied) and above."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What became of the input. ``accepted + rejected_input + collapsed`` rows were read.

    ``accepted = done + rejected + dead + pending - rejected_input``: ``rejected`` counts malformed rows too
    (``rejected_input``), and ``reused`` are those of ``done`` whose last stage was taken over from an earlier job.
    """

    accepted: int
    done: int
    reused: int
    rejected: int
    rejected_input: int
    dead: int
    pending: int
    collapsed: int


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage. Tokens count every document of the output; seconds, speeds, latency and cost only this job's work.

    ``tokens_asked`` is the budget, at most the document itself: ``copied`` documents had a larger one. ``seconds`` is
    worker time. ``latency`` maps percentiles ("50") to seconds, by nearest rank.

    ``cost_microusd`` is what the answered calls of this job cost, whatever became of the answer (``None``: a local
    stage, or no cost known). ``rowless_microusd`` is the part of it without a row: refusals that were paid for, answers
    not committed yet. ``unpriced`` counts the answers of unknown cost, which are in neither.
    """

    index: int
    kind: str
    method: str
    documents: int
    reused: int
    tokens_in: int
    tokens_asked: int | None
    tokens_out: int
    copied: int
    reused_tokens_in: int
    reused_tokens_out: int
    seconds: float
    tokens_in_per_second: float | None
    tokens_out_per_second: float | None
    latency: dict[str, float]
    cost_microusd: int | None
    rowless_microusd: int
    unpriced: int


@dataclass(frozen=True, slots=True)
class RateFigures:
    """One rate of a job of several: ``compressed`` of ``documents`` have a compressed prompt, whose tokens these are.

    ``savings``: as of the job, were every prompt sent once at this rate; ``seconds`` is this rate's share of the time
    that all rates took together.
    """

    rate: float
    documents: int
    compressed: int
    tokens_in: int
    tokens_asked: int
    tokens_out: int
    seconds: float
    savings: tuple[Saving, ...]


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Calls to a hosted endpoint in one state, and their money."""

    state: str
    calls: int
    tokens_in: int
    tokens_cached: int
    tokens_out: int
    cost_microusd: int | None
    reserved_microusd: int | None


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A call that may have been billed without an answer: nobody saw its end (``lost``), or it is under way (``sent``).

    ``reason`` says what was seen: a worker that ended, a broken connection, no answer in time, an unreadable one.
    """

    id: str
    state: str
    doc_id: str | None
    sent_at: float
    reserved_microusd: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class RejectionFigures:
    """Documents that gave no result at one stage ("input" before the first) for one reason, with a few examples."""

    stage: str
    status: str
    code: str
    count: int
    examples: tuple[dict[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many documents were asked for, and achieved, which ratio of compressed to original tokens: bin -> count."""

    asked: dict[int, int]
    achieved: dict[int, int]
    over_budget: int


@dataclass(frozen=True, slots=True)
class EvaluationFigures:
    """One metric of the answers, from 0 to 1, over ``scored`` of ``documents`` rows of the corpus.

    ``low`` to ``high`` is its 95% bootstrap interval; all three are ``None`` where nothing is scored. ``rate`` is there
    where a job has several.
    """

    task: str | None
    metric: str
    rate: float | None
    documents: int
    scored: int
    value: float | None
    low: float | None
    high: float | None
    tokens_original: int | None
    tokens_compressed: int | None
    tokens_prompt: int | None

    @property
    def ratio(self) -> float | None:
        """Original over compressed tokens of what is scored; ``None`` without compression."""
        if not self.tokens_compressed or self.tokens_original is None:
            return None
        return self.tokens_original / self.tokens_compressed


@dataclass(frozen=True, slots=True)
class DraftFigures:
    """What one model did for the answers of a stage that were drafted for: the target, or one that drafted for it."""

    model: str
    parameters: int
    passes: int
    drafted: int
    accepted: int

    @property
    def share(self) -> float | None:
        """Of its drafts, what was accepted."""
        return self.accepted / self.drafted if self.drafted else None


@dataclass(frozen=True, slots=True)
class DraftingFigures:
    """A stage's ``answers`` that were drafted for, of so many ``tokens``: by the target, then by who drafted."""

    stage: int
    answers: int
    tokens: int
    models: tuple[DraftFigures, ...]

    @property
    def idle(self) -> list[str]:
        """Models that were to draft, and drafted nothing though there was something to be drafted."""
        return [one.model for one in self.models[2:] if not one.drafted and self.tokens > self.answers]

    @property
    def tokens_per_pass(self) -> float:
        """Of the target."""
        return self.tokens / max(1, self.models[0].passes)

    @property
    def swi(self) -> float:
        """Standardised walltime improvement (arXiv 2312.11462, section 5): what passes of the target alone would cost
        over what all passes cost, each as much as its model has parameters."""
        cost = sum(one.passes * one.parameters for one in self.models)
        return self.tokens * self.models[0].parameters / max(1, cost)


@dataclass(frozen=True, slots=True)
class BudgetFigures:
    """The job's money: ``reserved + spent`` stays within ``limit``."""

    limit_microusd: int
    reserved_microusd: int
    spent_microusd: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of the estimate made before the job ran, beside what happened; ``None``: not known."""

    what: str
    unit: str
    estimated: float | None
    actual: float | None


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are. No password stands in them. ``slot_bytes``: of all slot files, ``None`` where there is none."""

    output: str
    data: str
    database: str
    parts: int
    part_bytes: int
    slot_bytes: int | None
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything ``report`` prints and the HTML shows about one job.

    ``wall_seconds`` runs from the submission to the end, or to now; it is unknown for a job that stands still.
    """

    job_id: str
    name: str
    state: str
    stop_code: str | None
    error: str | None
    created_at: float
    finished_at: float | None
    wall_seconds: float | None
    workers: int
    documents: Documents
    stages: tuple[StageFigures, ...]
    ratios: Ratios
    savings: tuple[Saving, ...]
    rates: tuple[RateFigures, ...]
    gpu_usd_per_hour: str
    requests: tuple[RequestFigures, ...]
    open_requests: tuple[OpenRequest, ...]
    budget: BudgetFigures | None
    rejections: tuple[RejectionFigures, ...]
    prices_used: dict[str, int]
    evaluations: tuple[EvaluationFigures, ...]
    drafting: tuple[DraftingFigures, ...]
    estimate: dict[str, Any] | None
    comparisons: tuple[Comparison, ...]
    places: Places
    spec: dict[str, Any]
    spec_hash: str
    input_hash: str
    stage_hashes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values (dicts, lists, strings, numbers, null)."""
        return _jsonable(asdict(self))  # type: ignore[no-any-return]


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
