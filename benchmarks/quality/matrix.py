"""Methods times ratios times tasks as job specs: one job per task and method, with all its ratios."""

from __future__ import annotations

import functools
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.quality.corpora import read, write
from benchmarks.quality.tasks import TASKS, Task
from pipeline.models import load_tokenizer
from schemas.document import SEPARATOR
from schemas.job import JobSpec

METHODS = Path(__file__).with_name("methods.toml")


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table, see ``methods.toml``."""

    name: str
    settings: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()
    corpus: str | None = None
    scorer: str | None = None
    like: str | None = None
    recover: bool = False

    @property
    def reference(self) -> bool:
        """Whether the library's own behaviour is asked for: a job of it has one budget, and options of its own."""
        return self.settings.get("fidelity") == "reference"


@dataclass(frozen=True, slots=True)
class Setup:
    """What all jobs share: where everything lies, the models, and how they run here."""

    data: Path
    out: Path
    target: str
    scorer: str
    documents: int | None = None  # of each task; None: as many as the task says
    max_new_tokens: int | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)
    compress: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planned:
    """A job to run. ``method`` is None for a prompt that is sent as it is."""

    task: str
    corpus: str
    method: Method | None
    rates: tuple[float, ...]
    spec: JobSpec

    @property
    def builds_on_another(self) -> bool:
        """Whether it takes answers over from another job, which should be done first."""
        return self.method is not None and self.method.recover


def read_methods(path: Path = METHODS) -> list[Method]:
    """The methods of a file. Raises ``SystemExit`` that names what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return [Method(name, **_tuples(table)) for name, table in tables.items()]
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise SystemExit(f"{path}: {error}") from error


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def plan(setup: Setup, tasks: Sequence[str], methods: Sequence[Method]) -> Iterator[Planned]:
    """The jobs: first each task's prompts as they are, then its methods. Corpora are written on the way.

    A method that this version does not know is left out with a word.
    """
    for name in tasks:
        task = TASKS[name]
        for corpus in task.corpora:
            yield Planned(name, corpus, None, (), job(setup, name, corpus, None, ()))
        for method in methods:
            ratios = [ratio for ratio in task.ratios if not method.ratios or ratio in method.ratios]
            if method.like is not None or not ratios or (method.tasks and name not in method.tasks):
                continue
            rates = tuple(round(1 / ratio, 6) for ratio in ratios)
            for some in [(rate,) for rate in rates] if method.reference else [rates]:
                planned = planned_or_none(setup, name, method, some)
                if planned is not None:
                    yield planned


def planned_or_none(setup: Setup, task: str, method: Method, rates: tuple[float, ...]) -> Planned | None:
    """The job of a method at these rates."""
    corpus = method.corpus or TASKS[task].full
    try:
        return Planned(task, corpus, method, rates, job(setup, task, corpus, method, rates))
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        print(f"{task}: {method.name} is left out: {reasons}", flush=True)
        return None


def job(setup: Setup, task: str, corpus: str, method: Method | None, rates: Sequence[float]) -> JobSpec:
    """One job; its corpus and its job file, which `contextmill run` takes, are written beside the results.

    Raises ``ValidationError`` for settings that this version does not know.
    """
    its = TASKS[task]
    name = f"{task}-{method.name if method else corpus}"
    name += f"-{1 / rates[0]:.3g}x" if method and method.reference else ""
    path = _corpus(setup, task, its, corpus)
    recover = [{"kind": "recover"}] if method and method.recover else []
    evaluate = {"kind": "evaluate", "task": its.scored_as}
    raw: dict[str, Any] = {
        "name": name,
        "input": {"path": [str(path)]},
        "output": {"path": str(setup.out)},
        "target": {"model": setup.target},
        "stages": [
            *_compress(setup, method, _budget(setup, its, path, method, rates)),
            _generate(setup, its),
            *recover,
            evaluate,
        ],
    }
    spec = JobSpec.model_validate(raw)
    file = setup.out / "jobs" / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(toml(raw), encoding="utf-8")
    return spec


def _compress(setup: Setup, method: Method | None, budget: Mapping[str, Any]) -> list[dict[str, Any]]:
    if method is None:
        return []
    scorer = setup.scorer if method.scorer is None else method.scorer
    model = {"model": scorer} if scorer else {}
    shared = setup.compress if scorer else {key: value for key, value in setup.compress.items() if key != "dtype"}
    return [{"kind": "compress", **model, **shared, **method.settings, **budget}]


def _budget(setup: Setup, task: Task, corpus: Path, method: Method | None, rates: Sequence[float]) -> dict[str, Any]:
    """The rates of the contexts. The library's ``target_token`` is of the contexts too, its ``rate`` of the prompt."""
    if method is None or not method.reference:
        return {"rates": list(rates), "budget": "contexts"}
    own = {"target_token": round(rates[0] * _mean_tokens(setup, corpus))} if task.alike else {"rate": rates[0]}
    return {"options": {**method.settings.get("options", {}), **own}}


def _mean_tokens(setup: Setup, corpus: Path) -> float:
    """Tokens of the contexts in a prompt of the corpus, by the target's tokenizer."""
    tokenizer = load_tokenizer(setup.target)
    texts = Counter(SEPARATOR.join(row["contexts"]) for row in read(corpus))
    tokens = sum(number * len(tokenizer.encode(text, add_special_tokens=False)) for text, number in texts.items())
    return tokens / texts.total()


def _generate(setup: Setup, task: Task) -> dict[str, Any]:
    most = min(task.max_new_tokens, setup.max_new_tokens or task.max_new_tokens)
    plain = {"kind": "generate", "chat": False, "max_new_tokens": most, "stop": list(task.stop)}
    return {**plain, **setup.generate}


def _corpus(setup: Setup, task: str, its: Task, corpus: str) -> Path:
    number = min(its.documents, setup.documents or its.documents)
    return _written(setup.data, setup.out / "corpora" / f"{task}-{corpus}-{number}.jsonl", task, corpus, number)


@functools.cache
def _written(data: Path, path: Path, task: str, corpus: str, number: int) -> Path:
    """The corpus's file, made anew once a run: what it is made from may have changed."""
    write(path, islice(TASKS[task].corpora[corpus](data), number))
    return path


def toml(job: Mapping[str, Any]) -> str:
    """A job as a job file: TOML writes plain values as JSON does."""
    lines = [
        f"{key} = {_value(value)}" for key, value in job.items() if not isinstance(value, dict) and key != "stages"
    ]
    tables = [(f"[{key}]", value) for key, value in job.items() if isinstance(value, dict)]
    for head, table in [*tables, *(("[[stages]]", stage) for stage in job["stages"])]:
        lines += ["", head, *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
