"""What llmlingua 0.2.2 itself returned: on small random models for every option, and on the bundled one.

``random.jsonl`` is written by ``python -m benchmarks.llmlingua_fuzz --write``, without cases of decisions closer than
1e-3; ``cases.jsonl`` was made on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from reference_models import DATA, engine_of, sentence_data

from benchmarks.parity.cases import Case, read_cases, same
from benchmarks.parity.random_model import save
from benchmarks.parity.scorer import Scoring, folder_of_the_reference
from pipeline.compression.reference.reference import ReferenceResult
from pipeline.models import LoadedModel, ModelPool

ROWS = [json.loads(line) for line in (DATA / "random.jsonl").read_text(encoding="utf-8").splitlines()]
WINDOWS = {row["id"]: row["window"] for row in ROWS}
RANDOM = read_cases(DATA / "random.jsonl")
REAL = read_cases(DATA / "cases.jsonl")


@pytest.fixture(scope="module", params=sorted(set(WINDOWS.values())))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random model, by its window."""
    return ModelPool("cpu").causal_lm(str(save(tmp_path_factory.mktemp("random"), request.param)))


@cache
def groups(window: int) -> tuple[tuple[Case, ...], ...]:
    """The cases for a window, those of equal options together."""
    found: dict[str, list[Case]] = {}
    for case in RANDOM:
        if WINDOWS[case.id] == window:
            found.setdefault(case.options.model_dump_json(), []).append(case)
    return tuple(map(tuple, found.values()))


def judge(case: Case, one: object) -> str | None:
    """What is wrong with a result."""
    assert isinstance(one, ReferenceResult), one
    if case.crashed:
        return None if one.crashed else f"{case.id}: the library raises, and nothing says so"
    return None if one.crashed is None and same(case, one.text) else f"{case.id}: {one}"


def test_every_option_gives_the_librarys_text_whatever_it_is_batched_with(loaded: LoadedModel) -> None:
    sentence_data()
    cases = groups(loaded.window)
    wrong = []
    for group in cases:
        together = engine_of(loaded, group[0].options).compress([case.parts for case in group])
        alone = [engine_of(loaded, case.options, batch_tokens=1).compress([case.parts])[0] for case in group]
        assert together == alone
        wrong += [judge(case, one) for case, one in zip(group, together, strict=True)]
    assert [one for one in wrong if one] == []
    assert sum(not case.crashed for group in cases for case in group) > 20


def test_what_is_given_where_the_library_raises_is_within_the_budget(loaded: LoadedModel) -> None:
    scoring = Scoring(loaded.ref.folder, "cpu", "float32", 4096)
    sentence_data()
    crashed = [case for group in groups(loaded.window) for case in group if case.crashed]
    for case in crashed:
        (one,) = engine_of(loaded, case.options).compress([case.parts])
        assert isinstance(one, ReferenceResult)
        assert scoring.lacks(case, one.text) is None, (case, one)
    assert crashed or loaded.window > min(WINDOWS.values())


@pytest.fixture(scope="module")
def real(model_cache: Path) -> Iterator[Scoring]:
    """The bundled model with the tokenizer of the outputs."""
    assert model_cache.is_dir()
    with folder_of_the_reference("smollm2-135m-instruct") as folder:
        yield Scoring(folder, "cpu", "float32", 8192)


@pytest.mark.model
@pytest.mark.parametrize("case", REAL, ids=lambda case: case.id)
def test_the_bundled_model_gives_the_librarys_text(real: Scoring, case: Case) -> None:
    sentence_data()
    (text,) = real.compress([case])
    assert text is not None
    assert same(case, text), text
