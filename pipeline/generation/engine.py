"""What a batch is decoded with, and the next one after it: stores of keys and values, lines, and recorded passes.

Passes are recorded for the memory they read. Made anew for each batch, that would take as long as half of a short one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from pipeline.batching import RELIEF
from pipeline.generation.costs import Costs
from pipeline.generation.earlier import Earlier
from pipeline.generation.kept_costs import kept_or_measured
from pipeline.generation.launched import launches
from pipeline.generation.leniences import Leniences
from pipeline.generation.lines import Lines
from pipeline.generation.paces import Way
from pipeline.generation.policy import Policy
from pipeline.generation.rounds import Model, Target, cascade, drafting
from pipeline.generation.sampling import Choosing
from pipeline.generation.texts import knows_vectors
from pipeline.generation.vocabularies import translation
from pipeline.models import LoadedModel
from pipeline.passes.encodable import head_of
from pipeline.passes.encoded import EncodedPasses
from pipeline.passes.recorded import Output, Steps, Work
from pipeline.passes.stored import StoredPasses
from schemas.drafting import MOST_COPIED, Plan
from schemas.stage import GenerateSpec

Passes = type[StoredPasses]


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

    @property
    def learns(self) -> bool:
        """Whether what is copied may come from earlier answers."""
        return bool(self.plan.copies and self.spec.draft_earlier)

    def model(self, loaded: LoadedModel, rows: int) -> Model:
        """The model or one of its drafters, with passes of its own; of a vocabulary only what both know."""
        model: Any = loaded.model
        target: Any = self.loaded.model
        encodes = self.passes is EncodedPasses
        passes = self.passes(model if encodes else model.get_decoder(), rows, loaded.window)
        head = head_of(model) if encodes else model.get_output_embeddings()
        with drafting() if loaded is not self.loaded else nullcontext():
            other, blind = translation(loaded, self.loaded), not knows_vectors(loaded, self.loaded)
        if other:
            return Model(passes, head, len(other.reads), other, blind)
        size = min(head.weight.shape[0], target.get_output_embeddings().weight.shape[0])
        return Model(passes, head, size, blind=blind)

    def costs_of(self, loaded: LoadedModel, look: Callable[[], None]) -> Costs:
        """Of the passes of the model or one of its drafters, measured once; ``look`` is called meanwhile."""
        known: dict[Hashable, Costs] = vars(loaded.model).setdefault("contextmill_costs", {})
        records = self.passes.records and self.names not in self.refused
        with drafting() if loaded is not self.loaded else nullcontext():
            translated = self.loaded.ref.digest if translation(loaded, self.loaded) else None
            key = self.passes, records, translated
            if key not in known:
                make = partial(self.model, loaded)
                known[key] = kept_or_measured(loaded, self.passes.__name__, translated, records, make, look)
        return known[key]

    def policy(self, look: Callable[[], None]) -> Policy:
        """What is known of this kind's drafts, kept with the model from batch to batch."""
        known: dict[Hashable, Policy] = vars(self.loaded.model).setdefault("contextmill_policies", {})
        if self.key not in known:
            costs = [self.costs_of(one, look) for one in (self.loaded, *self.drafters)]
            cascades = [way_of(plan) for plan in self.plan.shorter()]
            reading = partial(_reading, costs[1:])
            known[self.key] = Policy(partial(_seconds, costs, self.plan), cascades, self.plan.tail, reading)
        return known[self.key]

    @property
    def leniences(self) -> Leniences | None:
        """What is known of lenience where it is to be found out, kept with the model from batch to batch."""
        if self.plan.lenience != "auto" or not self.drafters:
            return None
        known: dict[Hashable, Leniences] = vars(self.loaded.model).setdefault("contextmill_leniences", {})
        return known.setdefault(self.key, Leniences())

    @property
    def refused(self) -> set[Hashable]:
        """By drafters, what of the model is not to be recorded."""
        found: set[Hashable] = vars(self.loaded.model).setdefault("contextmill_unrecorded", set())
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Of the drafters, by their weights."""
        return tuple(one.ref.digest for one in self.drafters)

    @property
    def key(self) -> Hashable:
        """Equal for equal kinds of one model."""
        sampling = self.spec.temperature, self.spec.top_p, self.spec.top_k
        return self.passes, self.plan, self.names, *sampling, self.learns


def way_of(plan: Plan) -> Way:
    """A round of this plan."""
    return Way(plan.rounds[0] if plan.rounds else 0, 1 + plan.most)


def _calls(plan: Plan, way: Way) -> list[tuple[int, int]]:
    """Of each drafter in a round: its passes, and the tokens of each that it has not read before."""
    if not way.rounds:
        return [(0, 1)] * len(plan.rounds)
    if not plan.given:
        plan = replace(plan, rounds=(way.rounds, *plan.rounds[1:]))
    return [(calls, plan.drafted_for(level) + 1) for level, calls in enumerate(plan.passes, 1)]


def _seconds(costs: Sequence[Costs], plan: Plan, rows: int, way: Way) -> float:
    """Of a round: of the target's pass, and of those of its drafters, whose ``costs`` come after the target's."""
    drafters = zip(costs[1:], _calls(plan, way), strict=True)
    return costs[0].at(rows, way.width) + sum(calls * cost.at(rows, width) for cost, (calls, width) in drafters)


def _reading(costs: Sequence[Costs], tokens: float) -> float:
    return sum(cost.reading(tokens) for cost in costs)


class Engine:
    """Of one kind, for batches of up to a ``size``. ``models``: the target, and its drafters."""

    def __init__(self, kind: Kind, size: Size, look: Callable[[], None]) -> None:
        self.size, self.choose = size, Choosing(kind.spec)
        self.models = [kind.model(one, size.rows) for one in (kind.loaded, *kind.drafters)]
        for model in self.models:
            model.passes.reserve(size.columns, size.longest)
        device, new = kind.loaded.device, size.new if self.choose.sampled else 0
        at_once = max(MOST_COPIED, *(row[-1] for row in kind.plan.matrix))
        chains = (self.models[0].size, at_once) if kind.learns else None
        self.lines = Lines(size.rows, size.width, new, device, launches(device), chains)
        self._learned: tuple[Earlier, int] | None = None
        self.usual, self.plan = way_of(kind.plan), kind.plan
        self.policy = kind.policy(look) if kind.plan.adaptive else None
        plans = kind.plan.shorter() if kind.plan.adaptive else [kind.plan]
        targets = {way_of(plan).rounds: cascade(self.models[0], self.models[1:], plan, self.choose) for plan in plans}
        targets.setdefault(0, cascade(self.models[0], [], Plan(copied=MOST_COPIED), self.choose))
        state = self.lines.tokens, self.lines.length
        least = max(one.passes.least for one in self.models)
        work = Work(partial(_round, targets, self.lines), state, self.lines.idle, least)
        self.steps = Steps(work, kind.passes.records, kind.refused, kind.names)

    def learn(self, earlier: Earlier) -> None:
        """Copy from what was said earlier, too, as far as it is counted by now."""
        known = earlier, earlier.learned
        if self.lines.chains is not None and self._learned != known:
            self.lines.learn(earlier.follows)
            self._learned = known

    def passes_in(self, way: Way) -> list[int]:
        """In a round, of all that draft: first of Max-Gram, which needs none."""
        return [0, *(calls for calls, _ in _calls(self.plan, way))]


def _round(targets: dict[int, Target], lines: Lines, slots: torch.Tensor, way: Way, most: int) -> Output:
    return targets[way.rounds].round(lines, slots, way.width, most)


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
