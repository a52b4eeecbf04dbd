"""The contract of a stage: the one way a method is plugged in.

A stage is a small frozen dataclass of settings with one method over a batch of documents. It neither reads files nor
knows SQL or Celery; what it may use of the outside comes in a ``Run``. A new stage is one file, one line in
``STAGES``, a spec in ``schemas/stage.py`` and columns in ``schemas/records.py``, and passes the suite in
``tests/pipeline/test_stage_contract.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from schemas.base import StageBase
from schemas.document import Document
from schemas.job import JobSpec, digest
from schemas.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from pipeline.generation.ledger import Ledger
    from pipeline.memory.packing import Made, Packed
    from pipeline.models import ModelPool

STAGES = {
    "evaluate": "pipeline.evaluation.stage:Evaluate",
    "recover": "pipeline.compression.recover_stage:Recover",
    "copy": "pipeline.copying:Copy",
    "compress": "pipeline.compression.stage:Compress",
    "encode": "pipeline.memory.encode_stage:Encode",
    "generate": "pipeline.generation.stage:Generate",
    "align": "pipeline.alignment.stage:Align",
    "distill": "pipeline.alignment.distilling:Distill",
    "pretrain": "pipeline.memory.stage:Pretrain",
    "finetune": "pipeline.memory.stage:Finetune",
}
"""Kind of stage -> the class behind it, imported only when such a stage runs (torch takes seconds).

In this order workers look for shards: what takes no model and ends documents goes first, so that jobs of a night end
one by one; compression goes before answers, as a change of models takes longest.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage made of one document.

    ``fields`` are the stage's columns (``schemas.records.STAGE_FIELDS``). ``seconds`` is the document's share of the
    stage's working time, by its tokens; ``latency_seconds`` the time its caller would have waited. An unknown cost is
    ``None``, never 0. ``slots`` are for the slot file of the shard: too large for a column.
    """

    fields: dict[str, Any]
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_asked: int | None = None
    seconds: float = 0.0
    latency_seconds: float | None = None
    cost_microusd: int | None = None
    price: str | None = None
    slots: Packed | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a stage gives no result for a document: a short stable ``code`` and a sentence that says what to do.

    ``dead`` marks a failure of ours rather than a fault of the document: listed apart, and `retry-dead` tries it again.
    """

    code: str
    reason: str
    dead: bool = False


Outcome = Result | Refusal


class Stopped(Exception):  # noqa: N818
    """The shard must be given back unfinished: the worker is stopping, or the job was cancelled."""


class Halt(Exception):  # noqa: N818
    """Something a person must mend (a wrong key, a full disk): the job stops cleanly with this text and can resume."""

    code = "error"


class BudgetReached(Halt):
    """The job's money is spent; it stops cleanly and resumes with a higher limit."""

    code = "budget"


def _never() -> bool:
    return False


def _silent(documents: int, tokens: int) -> None:
    del documents, tokens


def _unsaid(doing: str) -> None:
    del doing


def _none_known(contexts: Sequence[str]) -> Mapping[str, Made]:
    del contexts
    return {}


@dataclass(frozen=True, slots=True)
class Run:
    """What a stage may use of the outside while it works on a shard.

    ``models`` keeps loaded models between shards. ``ledger`` is there for stages that pay per call. ``stopping`` is
    asked between batches. ``progress(documents, tokens)`` counts what was finished since the last call, and is a sign
    of life: a shard that gives none for ``Settings.soft_time_limit`` is taken to be stuck, one that does never is.
    ``say(doing)`` tells those who watch what that was, where documents do not: the step of a training, and its loss.
    ``folder`` is the stage's own place beside the job's data (local or s3), for what outlives an attempt: checkpoints.
    ``output`` is the job's folder, in which the files lie that rows of earlier stages name. ``known`` has of these
    contexts the slots that were made before, by the same stage for whatever prompts.
    """

    models: ModelPool
    ledger: Ledger | None = None
    stopping: Callable[[], bool] = field(default=_never)
    progress: Callable[[int, int], None] = field(default=_silent)
    say: Callable[[str], None] = field(default=_unsaid)
    folder: str | None = None
    output: str | None = None
    known: Callable[[Sequence[str]], Mapping[str, Made]] = field(default=_none_known)


class Stage(Protocol):
    """One method of the pipeline, made as ``Class(spec, target)``: its own settings, the job's target model."""

    def identity(self) -> Any:
        """What besides the spec decides its output, as a JSON value: its version, digests of weights and tokenizers.

        The version is an integer, ``VERSION`` in the stage's module. Whoever changes what the stage writes for the same
        spec raises it, in the same commit: equal hashes mean equal output, and nights would mix old results with new.
        """
        ...

    def work_seconds(self, characters: int) -> float:
        """A rough estimate of the work one document of this length is, for cutting shards."""
        ...

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. An exception fails the batch, which is then bisected."""
        ...


def build(job: JobSpec, index: int) -> Stage:
    """The stage at ``index`` of ``job``."""
    spec = job.stages[index]
    module, _, name = STAGES[spec.kind].partition(":")
    stage: Stage = getattr(importlib.import_module(module), name)(spec, job.target)
    return stage


def check(job: JobSpec) -> None:
    """What a stage looks at when a job is submitted, beyond its identity: its ``check``, where it has one."""
    for index in range(len(job.stages)):
        getattr(build(job, index), "check", lambda: None)()


def stage_hashes(job: JobSpec) -> list[str]:
    """One digest per stage: equal content hash and equal stage hash mean equal output, in whatever job.

    Each covers its own settings, version, weights and record version, and those of all stages before it.
    """
    hashes: list[str] = []
    for index in range(len(job.stages)):
        hashes.append(stage_hash(job, index, hashes))
    return hashes


def stage_hash(job: JobSpec, index: int, before: Sequence[str]) -> str:
    """The digest of the stage at ``index``, as this machine would do it; ``before`` holds those of earlier stages."""
    base: StageBase = job.stages[index]
    settings = base.output_settings()
    settings.pop("rates", None)  # each document has its own, in its content hash: nights may ask for other ones too
    return digest([before[index - 1] if index else SCHEMA_VERSION, settings, build(job, index).identity()])
