"""LLMLingua (Jiang et al., EMNLP 2023, arXiv 2310.05736) as the paper has it, under a hard budget.

Budget controller: contexts (the paper's demonstrations) are ranked by perplexity and taken, highest first, until they
fill k times the budget. Iterative compression: what was taken is read in segments, each scored after the compressed
text before it; in each segment the most surprising units are kept, at the rate its part of the prompt may keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.budget import Lengths, Rates, context_budget, fit_rates, spread_rest
from pipeline.compression.iterative import Stream, rank, segment_of
from pipeline.compression.prompt import Prompt
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.scoring import Scorer
from pipeline.compression.selection import choose_contexts
from pipeline.compression.tokens import Tokenising
from pipeline.compression.units import MAX_TOKENS
from schemas.compress import LLMLinguaSpec
from schemas.document import SEPARATOR

if TYPE_CHECKING:
    from pipeline.models import ModelPool

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LLMLingua:
    """``k``: how much of the contexts' budget the coarse choice may overfill. ``size``: tokens in a segment.

    ``start``: the scorer's start token; ``separator``: its tokens of the blank line between parts. ``tau``: the rates
    of instruction and question. ``known`` remembers the perplexities of contexts by their text: few-shot corpora repeat
    their demonstrations.
    """

    scorer: Scorer
    tokenising: Tokenising
    start: int
    separator: Ints
    tau: Rates
    k: float
    size: int
    known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def build(cls, spec: LLMLinguaSpec, models: ModelPool, target: Tokenising) -> LLMLingua:
        """The method over its scoring model."""
        del target
        loaded = models.causal_lm(spec.model, spec.dtype, spec.device)
        scorer, tokenising = Scorer(loaded, spec.batch_tokens), Tokenising(loaded.tokenizer)
        separator = tokenising.tokenise([SEPARATOR])[0].ids
        tau = Rates(spec.tau_instruction, 1.0, spec.tau_question)
        size = min(spec.iterative_size, max(1, scorer.prefix // 4))
        return cls(scorer, tokenising, tokenising.start_id(), separator, tau, spec.granular_k, size)

    @property
    def abreast(self) -> int:
        """As many prompts as fill a pass, in which each has a segment and what was kept of the one before."""
        return max(1, self.scorer.batch_tokens // (2 * (self.size + MAX_TOKENS)))

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """How far each unit lies above its segment's threshold; ``-inf`` in contexts that were not taken."""
        taken = self._take_contexts(prompts, passed)
        rates = [self._rates(prompt, places) for prompt, places in zip(prompts, taken, strict=True)]
        plans = [self._plan(prompt, places, rate) for prompt, places, rate in zip(prompts, taken, rates, strict=True)]
        work = [place for place, plan in enumerate(plans) if len(plan.scored)]
        streams = [self._stream(prompts[place], plans[place]) for place in work]
        ranked = dict(zip(work, rank(self.scorer, streams, self.size, passed), strict=True))
        return [
            Ranking(_spread(prompt, plan, ranked.get(place)))
            for place, (prompt, plan) in enumerate(zip(prompts, plans, strict=True))
        ]

    def _take_contexts(self, prompts: Sequence[Prompt], passed: Passed) -> list[list[int]]:
        """The coarse choice. No perplexity is computed where all contexts would be taken anyway."""
        limits = [self.k * context_budget(prompt.budget, _lengths(prompt), self.tau) for prompt in prompts]
        wanted = {}
        for prompt, limit in zip(prompts, limits, strict=True):
            places = prompt.places("context")
            if len(places) > 1 and 0 < limit < _lengths(prompt).contexts:
                wanted.update({prompt.parts[place].text: prompt.parts[place].ids for place in places})
        new = {text: ids for text, ids in wanted.items() if text not in self.known}
        texts = [np.concatenate([[self.start], ids]) for ids in new.values()]
        self.known.update(zip(new, self.scorer.mean_surprisal(texts, passed).tolist(), strict=True))
        return [self._choose(prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]

    def _choose(self, prompt: Prompt, limit: float) -> list[int]:
        places = prompt.places("context")
        lengths = np.array([prompt.parts[place].length + prompt.separator for place in places], dtype=np.int64)
        surprise = np.array([self.known.get(prompt.parts[place].text, 0.0) for place in places])
        return [places[one] for one in choose_contexts(surprise, lengths, limit).tolist()]

    def _rates(self, prompt: Prompt, taken: list[int]) -> Rates:
        lengths, tau = _lengths(prompt), self.tau
        kept = sum(prompt.parts[place].length + prompt.separator for place in taken)
        raised = spread_rest(self.k * context_budget(prompt.budget, lengths, tau), kept, lengths, tau)
        joints = prompt.separator * len(taken)
        return fit_rates(prompt.budget - joints, Lengths(lengths.instruction, kept - joints, lengths.question), raised)

    def _plan(self, prompt: Prompt, taken: list[int], rates: Rates) -> _Plan:
        by_role = {"instruction": rates.instruction, "context": rates.contexts, "question": rates.question}
        scored = [
            place
            for place, part in enumerate(prompt.parts)
            if not part.verbatim and (part.role != "context" or place in taken)
        ]
        return _Plan(tuple(scored), tuple(by_role[prompt.parts[place].role] for place in scored))

    def _stream(self, prompt: Prompt, plan: _Plan) -> Stream:
        """The parts to be scored, a locked separator before each that has something before it."""
        before = [part for part in prompt.parts[: plan.scored[0]] if part.verbatim]
        start = np.concatenate([[self.start], *(ids for part in before for ids in (part.ids, self.separator))])
        pieces: list[_Piece] = []
        for place, rate in zip(plan.scored, plan.rates, strict=True):
            if pieces:
                pieces.append(
                    _Piece(
                        self.separator,
                        np.array([len(self.separator)]),
                        np.zeros(1, np.int64),
                        1.0,
                        np.ones(1, bool),
                        pieces[-1].group,
                    )
                )
            part = prompt.parts[place]
            counts = np.diff(np.append(part.first, len(part.ids)))
            pieces.append(_Piece(part.ids, counts, part.costs, rate, part.forced, part.role))
        return _stream_of(start, pieces, self.size)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The parts of a prompt that are scored, and the rate of each."""

    scored: tuple[int, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part or a separator on its way into a stream. Segments never span two groups (equation 6 has one rate each)."""

    ids: Ints
    counts: Ints
    costs: Ints
    rate: float
    locked: NDArray[np.bool_]
    group: str


def _stream_of(start: Ints, pieces: Sequence[_Piece], size: int) -> Stream:
    units = [len(piece.counts) for piece in pieces]
    names = {name: number for number, name in enumerate(dict.fromkeys(piece.group for piece in pieces))}
    counts = np.concatenate([piece.counts for piece in pieces])
    groups = np.repeat([names[piece.group] for piece in pieces], units)
    return Stream(
        start=start,
        ids=np.concatenate([piece.ids for piece in pieces]),
        counts=counts,
        costs=np.concatenate([piece.costs for piece in pieces]),
        rates=np.repeat([piece.rate for piece in pieces], units),
        segments=segment_of(counts, groups, size),
        locked=np.concatenate([piece.locked for piece in pieces]),
    )


def _spread(prompt: Prompt, plan: _Plan, ranked: Floats | None) -> Floats:
    """Margins of a stream's units -> margins of all the prompt's units."""
    parts = [np.full(len(part.places), -np.inf) for part in prompt.parts]
    place = 0
    for number, scored in enumerate(plan.scored):
        assert ranked is not None
        place += number > 0  # the separator
        parts[scored] = ranked[place : place + len(parts[scored])]
        place += len(parts[scored])
    return np.concatenate(parts)


def _lengths(prompt: Prompt) -> Lengths:
    totals = {"instruction": 0, "context": 0, "question": 0}
    for part in prompt.parts:
        totals[part.role] += part.length + (prompt.separator if part.role == "context" else 0)
    return Lengths(totals["instruction"], totals["context"], totals["question"])
