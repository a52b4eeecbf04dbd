"""What a batch is decoded with, and the next one after it: stores of keys and values, lines, and recorded passes.

Passes are recorded for the memory they read. Made anew for each batch, that would take as long as half of a short one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.batching import RELIEF
from pipeline.generation.costs import Costs, measured
from pipeline.generation.lines import Lines
from pipeline.generation.policy import Policy
from pipeline.generation.rounds import Model, cascade
from pipeline.generation.sampling import Choosing
from pipeline.models import LoadedModel
from pipeline.passes.packed import PackedPasses
from pipeline.passes.padded import PaddedPasses
from pipeline.passes.recorded import Steps, Work
from schemas.drafting import Plan
from schemas.stage import GenerateSpec

Passes = type[PackedPasses] | type[PaddedPasses]


@dataclass(frozen=True, slots=True)
class Size:
    """``columns`` in all for ``rows`` at once, ``longest`` or fewer for each, whose lines have ``width`` tokens, with
    ``new`` random numbers for each."""

    columns: int
    rows: int
    longest: int
    width: int
    new: int

    def holds(self, other: Size) -> bool:
        """Whether there is room for all that the other has room for."""
        return all(mine >= its for mine, its in zip(astuple(self), astuple(other), strict=True))

    def with_room_for(self, other: Size) -> Size:
        """The least that holds both; only the other where that would be far more than either: many rows as long as the
        longest one of others."""
        both = Size(*map(max, astuple(self), astuple(other)))
        return both if both.rows * both.width <= 2 * max(self.rows * self.width, other.rows * other.width) else other


@dataclass(frozen=True, slots=True)
class Kind:
    """What decodes alike, whatever the prompts: ``passes`` of a model and its ``drafters``, and the ``spec``'s sampling
    and ``plan``."""

    loaded: LoadedModel
    spec: GenerateSpec
    passes: Passes
    plan: Plan
    drafters: Sequence[LoadedModel]

    def model(self, loaded: LoadedModel, rows: int) -> Model:
        """The model or one of its drafters, with passes of its own; of a vocabulary only what both know."""
        model: Any = loaded.model
        target: Any = self.loaded.model
        passes, head = self.passes(model.get_decoder(), rows, loaded.window), model.get_output_embeddings()
        return Model(passes, head, min(head.weight.shape[0], target.get_output_embeddings().weight.shape[0]))

    @property
    def refused(self) -> set[Hashable]:
        """By drafters, what of the model is not to be recorded."""
        found: set[Hashable] = vars(self.loaded.model).setdefault("contextmill_unrecorded", set())
        return found

    def costs(self, look: Callable[[], None]) -> Costs:
        """Of the model's passes, measured once; ``look`` is called meanwhile."""
        known: dict[Passes, Costs] = vars(self.loaded.model).setdefault("contextmill_costs", {})
        if self.passes not in known:
            records = self.passes.records and self.names not in self.refused
            known[self.passes] = measured(lambda rows: self.model(self.loaded, rows), records, look)
        return known[self.passes]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the drafters, by their weights."""
        return tuple(one.ref.digest for one in self.drafters)

    @property
    def key(self) -> Hashable:
        """Equal for equal kinds of one model."""
        return self.passes, self.plan, self.names, self.spec.temperature, self.spec.top_p, self.spec.top_k


class Engine:
    """Of one kind, for batches of up to a ``size``."""

    def __init__(self, kind: Kind, size: Size, look: Callable[[], None]) -> None:
        self.size, self.choose = size, Choosing(kind.spec)
        self.models = [kind.model(one, size.rows) for one in (kind.loaded, *kind.drafters)]
        for model in self.models:
            model.passes.reserve(size.columns, size.longest)
        self.target = cascade(self.models[0], self.models[1:], kind.plan, self.choose)
        self.lines = Lines(size.rows, size.width, size.new if self.choose.sampled else 0, kind.loaded.device)
        state = self.lines.tokens, self.lines.length
        work = Work(functools.partial(self.target.round, self.lines), state, self.lines.idle)
        self.steps = Steps(work, kind.passes.records, kind.refused, kind.names)
        self.policy = Policy(kind.costs(look)) if kind.plan.adaptive else None


_KEPT: WeakKeyDictionary[Any, dict[Hashable, Engine]] = WeakKeyDictionary()
"""By model, the last one that was used."""


@contextmanager
def engine_for(kind: Kind, size: Size, look: Callable[[], None]) -> Iterator[Engine]:
    """One with that much room. It is kept for the next batch if all goes well, until memory is short or another model
    is loaded. ``look`` is called while it is made, if that takes long, and may raise."""
    kept = _KEPT.setdefault(kind.loaded.model, {})
    found = kept.pop(kind.key, None)
    kept.clear()
    if found is None or not found.size.holds(size):
        size = found.size.with_room_for(size) if found else size
        found = None  # its memory is needed first
        found = Engine(kind, size, look)
    found.steps.begin()
    yield found
    if kind.passes.records:  # else nothing would be gained
        kept[kind.key] = found


def let_go() -> bool:
    """Keep none; whether there was one."""
    engines = [kept for kept in list(_KEPT.values()) if kept]
    for kept in engines:
        kept.clear()
    return bool(engines)


RELIEF.append(let_go)
