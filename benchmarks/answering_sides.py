"""The sides of ``slot_answering``: the same questions about the same contexts, as text and as slots."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import Spread, spent
from benchmarks.roofline import LowRanks, Machine, Shapes
from pipeline.batching import run_packed
from pipeline.generation import engine, local
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.ragged import encode_spans, pass_tokens, places_of
from pipeline.memory.resident import Resident
from pipeline.memory.spans import cut, spans_of
from pipeline.models import ModelPool
from pipeline.stages import Run
from schemas.memory import slots_of
from schemas.stage import GenerateSpec

Ints = NDArray[np.int64]

FULL, CACHED, ENCODED = "full text", "cached slots", "encode + answer"


@dataclass(frozen=True, slots=True)
class Bench:
    """As many ``rows`` at once, as the command's arguments have them ``given``."""

    there: Resident
    given: argparse.Namespace
    pool: ModelPool
    machine: Machine
    shapes: Shapes
    rows: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Tokens and slots of those of each context."""
        return [(length, slots_of(length, self.given.ratio)) for length in cut(self.given.tokens, self.given.span)]

    @property
    def slots(self) -> int:
        """Of a context."""
        return sum(slots for _, slots in self.spans)

    @property
    def ratio(self) -> float:
        """Tokens a slot, of all spans."""
        return float(self.given.tokens / self.slots)

    def operations(self) -> tuple[float, float]:
        """Of encoding each context, and of reading it as text rather than as slots."""
        full, cached = (self.shapes.reading(1, self._places(name)).operations for name in (FULL, CACHED))
        encoding = self.shapes.encoding(self.spans * self.rows, *self._beside).operations / self.rows
        return encoding, full - cached

    def sides(self) -> list[dict[str, Any]]:
        """The figures of each, the full text first."""
        random, words = np.random.default_rng(self.rows), self.there.base.model.config.vocab_size
        contexts = random.integers(5, words, (self.rows, self.given.tokens))
        questions: list[list[int]] = random.integers(5, words, (self.rows, self.given.question)).tolist()
        tag = self.there.coder.tags[TAGS.index("FT")].detach()[None]
        full = [Prompt([*one, *asked], 1) for one, asked in zip(contexts.tolist(), questions, strict=True)]

        def slotted(slots: Sequence[torch.Tensor]) -> list[Prompt]:
            told = tag.to(slots[0])
            return [Prompt.of([one, told, asked], 1) for one, asked in zip(slots, questions, strict=True)]

        def encoded() -> list[torch.Tensor]:
            return self._encoded(contexts)

        cached = slotted([one.half().cpu() for one in encoded()])
        encoding = self._times(encoded, warm=True)
        found = [self._side(FULL, lambda: full), self._side(CACHED, lambda: cached)]
        last = self._side(ENCODED, lambda: slotted(encoded()))
        floor = self.machine.seconds([self.shapes.encoding(self.spans * self.rows, *self._beside)])
        last |= {"encode s": encoding.median, "floor encode s": floor, "floor s": last["floor s"] + floor}
        return [*found, last]

    def _places(self, name: str) -> int:
        """Of a prompt. [FT] stands behind slots."""
        return int(self.given.question + (self.given.tokens if name == FULL else self.slots + 1))

    @property
    def _beside(self) -> tuple[LowRanks, int]:
        """The encoder's low-rank weights, and the numbers of its map."""
        return LowRanks.of(self.there.coder), self.there.coder.map.weight.numel()

    @torch.inference_mode()
    def _encoded(self, contexts: Ints) -> list[torch.Tensor]:
        """Slots ``[k, d]`` of each, on the device."""
        coder: Autoencoder = self.there.coder
        spans = list(chain.from_iterable(spans_of(one, self.given.span) for one in contexts))
        counts = [slots for _, slots in self.spans] * len(contexts)
        lengths = [places_of(len(ids), slots, coder) for ids, slots in zip(spans, counts, strict=True)]

        def work(some: list[int]) -> list[torch.Tensor]:
            return encode_spans(coder, [spans[one] for one in some], [counts[one] for one in some])

        most = pass_tokens(self.given.batch_tokens, self.there.base.device)
        made = run_packed(lengths, most, work, padded=coder.wide is None)
        each = len(self.spans)
        return [torch.cat(made[at : at + each]) for at in range(0, len(made), each)]

    def _times(self, work: Callable[[], Any], warm: bool = False) -> Spread:
        if not warm:
            work()
        return Spread.of([spent(work, self.there.base.device)[1] for _ in range(self.given.runs)])

    def _side(self, name: str, prompts: Callable[[], list[Prompt]]) -> dict[str, Any]:
        """``prompts`` are made anew each time, if that counts. Nothing is kept of the side before."""
        engine.let_go()
        new, device, places = self.given.new, self.there.base.device, self._places(name)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with _watched() as held:
            whole = self._times(lambda: self._answer(prompts(), new))
            # The same engine has room for it. What is encoded first is read as what is cached.
            read = self._times(lambda: self._answer(prompts(), 1)) if name != ENCODED else None
        works = self.shapes.answering(self.rows, places, new)
        return {
            "rows": self.rows, "side": name, "places": places,
            "s": whole.median, "floor s": self.machine.seconds(works),
            "read s": read and read.median, "floor read s": read and self.machine.seconds(works[:1]),
            "tokens/s": self.rows * new / whole.median, "answers/s": self.rows / whole.median,
            "MB an answer": max(held) / self.rows / 1e6, "answers/GB": 1e9 * self.rows / max(held),
            "spread": [asdict(one) for one in (whole, read) if one],
            "peak bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }  # fmt: skip

    def _answer(self, prompts: Sequence[Prompt], new: int) -> None:
        room = sum(len(one.ids) + new for one in prompts)
        generator = LocalGenerator(self.there.base, GenerateSpec(kind="generate", batch_tokens=room), Run(self.pool))
        with mock.patch.object(local, "end_tokens", lambda *some: frozenset()):
            found = generator.generate([replace(one, new_tokens=new) for one in prompts])
        if other := [len(one.tokens) for one in found if len(one.tokens) != new]:
            raise SystemExit(f"{len(other)} of {len(found)} answers have other than {new} tokens: {other[:5]}")


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Bytes of the keys and values that each engine held when it was done."""
    found: list[int] = []
    real = engine.engine_for

    @contextmanager
    def noted(*how: Any) -> Iterator[engine.Engine]:
        made: AbstractContextManager[engine.Engine] = real(*how)
        with made as one:
            yield one
            found.append(sum(_stored(model.passes) for model in one.models))

    with mock.patch("pipeline.generation.decoding.engine_for", noted):
        yield found


def _stored(passes: Any) -> int:
    tensors = passes._stores if passes.records else chain.from_iterable(passes._store._layers.values())
    return sum(int(one.nbytes) for one in tensors)
