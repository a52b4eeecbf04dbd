"""Whatever keeps the promise of ``StoredPasses`` carries answers: here passes that store no keys and values at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from other_models import WINDOW, save_other
from tiny_models import save_tiny_llama

from pipeline.generation import local
from pipeline.generation.early_exit import early_exit
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.stored import StoredPasses
from pipeline.passes.vectors import Vectors, input_of
from pipeline.stages import Run
from schemas.stage import GenerateSpec

Ints = NDArray[np.int64]


class Rereading:
    """Keeps what was read, tokens' embeddings and vectors, and reads all of it again in every pass."""

    records: ClassVar[bool] = False
    least = 1

    def __init__(self, trunk: Any, rows: int, window: int) -> None:
        self.trunk, self.window = trunk, window
        self.rows = [torch.zeros(0, trunk.config.hidden_size)] * rows
        self.told: list[int] = []

    def run(
        self, rows: Ints, ids: torch.Tensor, cached: Ints, counts: Ints, vectors: Vectors | None = None
    ) -> torch.Tensor:
        none = Vectors(torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.trunk.config.hidden_size))
        words = input_of(self.trunk, ids, vectors or none)["inputs_embeds"]
        found = []
        for row, stored, new in zip(rows, cached, torch.split(words, counts.tolist()), strict=True):
            assert stored <= len(self.rows[row])
            self.rows[row] = torch.cat([self.rows[row][:stored], new])
            states = self.trunk(inputs_embeds=self.rows[row][None], use_cache=False).last_hidden_state
            found.append(states[0, stored:])
        return torch.cat(found)

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        assert int(stored.max()) + ids.shape[1] <= most
        return self.run(slots.numpy(), ids.flatten(), stored.numpy(), np.full(len(slots), ids.shape[1]))

    def copy(self, sources: Ints, targets: Ints, counts: Ints) -> None:
        for source, target, count in zip(sources, targets, counts, strict=True):
            self.rows[target] = self.rows[source][:count]

    def reserve(self, columns: int, longest: int) -> None:
        assert longest <= columns

    def place(self, rows: Ints, begins: Ints) -> None:
        for row in rows:
            self.rows[row] = self.rows[row][:0]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folders: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in ("llama", "gpt_neox")}
    save_tiny_llama(folders["llama"], window=WINDOW)
    save_other(folders["gpt_neox"], "gpt_neox")
    return {name: ModelPool("cpu").causal_lm(str(folder)) for name, folder in folders.items()}


def ids(count: int, seed: int) -> list[int]:
    found: list[int] = torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


SHARED = torch.randn(70, 64, generator=torch.Generator().manual_seed(0)) / 4
PROMPTS = [
    Prompt.of([ids(9, 1)], 20, 1),
    Prompt.of([SHARED, ids(5, 2)], 20, 2),
    Prompt.of([ids(3, 3), SHARED[:4]], 12, 3),
    Prompt.of([SHARED, ids(2, 4)], 20, 4),
]


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_answers_are_the_same_whatever_is_stored(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    """Prompts that begin alike, vectors, copies and a drafter: none asks for more than the promise."""
    loaded = targets[name]
    first = early_exit(loaded, 1)

    def answers(**more: Any) -> list[list[int]]:
        drafters = [first] if "draft_rounds" in more else []
        spec = GenerateSpec(kind="generate", drafters=["layers:1"] * len(drafters), **more, **settings)
        generator = LocalGenerator(loaded, spec, Run(ModelPool("cpu")), drafters)
        return [one.tokens for one in generator.generate(PROMPTS)]

    expected = answers()
    passes: type[StoredPasses] = Rereading
    monkeypatch.setattr(local, "passes_for", lambda loaded: passes)
    for batch_tokens in (1, 200, 16384):
        assert answers(batch_tokens=batch_tokens) == expected
        assert answers(batch_tokens=batch_tokens, draft_tokens=3) == expected
        assert answers(batch_tokens=batch_tokens, draft_rounds=(2,), draft_tokens=1, draft_tail=2) == expected
