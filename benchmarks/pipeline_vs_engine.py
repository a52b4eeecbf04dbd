"""How much of the bare engine's speed is left when the same shards go through Celery, SQL and Parquet.

    python -m benchmarks.pipeline_vs_engine examples/gsm8k.jsonl --documents 8192 --dtype bfloat16 --batch-tokens 131072

Both sides compress the same documents with a warm model. *Bare*: the stage's ``run`` over one shard after the other in
this process. *Pipeline*: from submitting the corpus to the published ``data/``, through a broker and ``--workers``
workers that have the model loaded (a small job before it sees to that). Counted are the prompts' original tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Engine, func, select

from benchmarks.workloads import of_file
from pipeline.cutting import cut, most_documents
from pipeline.models import ModelPool
from pipeline.producer import submit
from pipeline.stages import Result, Run, build
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from pipeline.watching import watch
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.settings import Settings
from schemas.tables import Shard, Usage
from workers.app import make_app
from workers.doorbell import CeleryDoorbell
from workers.embedded import Embedded


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates are original tokens per second. ``stage_seconds`` is the sum of the pipeline's shards, claim to commit."""

    documents: int
    shards: int
    tokens: int
    bare_seconds: float
    bare_tokens_per_second: float
    workers: int
    pipeline_seconds: float
    pipeline_tokens_per_second: float
    share: float
    stage_seconds: float


def main() -> None:
    arguments = _parse()
    parts = of_file(arguments.file, arguments.documents)
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(arguments, Path(folder), parts, "timed")
        bare = None if arguments.no_bare else _bare(spec, parts, arguments.workers)
        for _ in range(arguments.repeat):
            print(json.dumps(asdict(_pipeline(arguments, Path(folder), spec, parts, bare))), flush=True)


def _spec(arguments: argparse.Namespace, folder: Path, parts: list[PromptParts], name: str) -> JobSpec:
    corpus = folder / f"{name}.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(parts):
            file.write(json.dumps({"id": f"{name}-{number}", **asdict(prompt)}) + "\n")
    stage = {
        "kind": "compress", "model": arguments.model, "dtype": arguments.dtype, "device": arguments.device,
        "target_tokens": arguments.target_tokens, "batch_tokens": arguments.batch_tokens,
        "seconds_per_shard": arguments.seconds_per_shard,
    }  # fmt: skip
    raw = {"name": name, "input": {"path": str(corpus)}, "output": {"path": str(folder / "out")}, "stages": [stage]}
    return JobSpec.model_validate({**raw, "target": {"model": arguments.model}})


def _shards(spec: JobSpec, parts: list[PromptParts], workers: int) -> Iterator[list[Document]]:
    """The documents as the producer cuts them, but for its first, smaller shards."""
    stage = build(spec, 0)
    sizes = [len(prompt.render()) for prompt in parts]
    work = ((seq, size, stage.work_seconds(size)) for seq, size in enumerate(sizes))
    for start, stop in cut(work, spec.stages[0].seconds_per_shard, most_documents(len(parts), workers)):
        yield [Document(seq, str(seq), parts[seq], parts[seq].content_hash()) for seq in range(start, stop)]


def _bare(spec: JobSpec, parts: list[PromptParts], workers: int) -> tuple[int, float]:
    """(original tokens, seconds) of the stage alone."""
    stage, run = build(spec, 0), Run(ModelPool())
    shards = list(_shards(spec, parts, workers))
    stage.run(shards[0][: max(8, len(shards[0]) // 4)], run)
    begun = time.perf_counter()
    tokens = 0
    for shard in shards:
        tokens += sum(outcome.tokens_in for outcome in stage.run(shard, run) if isinstance(outcome, Result))
    seconds = time.perf_counter() - begun
    run.models.close()
    return tokens, seconds


def _pipeline(
    arguments: argparse.Namespace, folder: Path, spec: JobSpec, parts: list[PromptParts], bare: tuple[int, float] | None
) -> Figures:
    run = Path(tempfile.mkdtemp(dir=folder))
    url = SecretStr(f"sqlite:///{run / 'contextmill.db'}")
    engine = open_engine(url.get_secret_value())
    migrate(engine)
    warm = _spec(arguments, run, parts[: 64 * arguments.workers], "warm")
    settings = Settings().model_copy(update={"database_url": url})
    with Embedded(settings, arguments.workers, arguments.logs or run / "logs") as embedded:
        doorbell = CeleryDoorbell(make_app(embedded.settings))
        _until_done(engine, warm, doorbell, arguments.workers)
        begun = time.perf_counter()
        job_id = _until_done(engine, spec, doorbell, arguments.workers)
        seconds = time.perf_counter() - begun
    with engine.connect() as connection:
        tokens = connection.execute(select(func.sum(Usage.tokens_in)).where(Usage.job_id == job_id)).scalar_one()
        query = select(func.count(), func.sum(Shard.seconds)).where(Shard.job_id == job_id, Shard.stage == 0)
        shards, stage_seconds = connection.execute(query).one()
    bare_tokens, bare_seconds = bare or (0, 0.0)
    bare_rate = bare_tokens / bare_seconds if bare_seconds else 0.0
    return Figures(
        documents=len(parts), shards=shards, tokens=int(tokens), bare_seconds=round(bare_seconds, 2),
        bare_tokens_per_second=round(bare_rate), workers=arguments.workers, pipeline_seconds=round(seconds, 2),
        pipeline_tokens_per_second=round(int(tokens) / seconds),
        share=round(int(tokens) / seconds / bare_rate, 3) if bare_rate else 0.0,
        stage_seconds=round(stage_seconds or 0.0, 2),
    )  # fmt: skip


def _until_done(engine: Engine, spec: JobSpec, doorbell: CeleryDoorbell, workers: int) -> str:
    job_id = submit(engine, spec, doorbell, workers=workers).job_id
    shot = deque(watch(engine, job_id, pause=0.05), maxlen=1)[0]
    if shot.state != "done":
        raise SystemExit(f"the job ended {shot.state}: {shot.error}")
    return job_id


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--target-tokens", type=int, default=240)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--seconds-per-shard", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--no-bare", action="store_true", help="only the pipeline, to compare numbers of workers")
    parser.add_argument("--logs", type=Path, help="folder for the workers' logs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
