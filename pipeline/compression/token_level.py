"""The fine level of LLMLingua and LongLLMLingua: units of planned prompts, iteratively or read once, many abreast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.frame import frame_of
from pipeline.compression.iterative import rank
from pipeline.compression.lexical import Words, unit_weights
from pipeline.compression.once import rank_once
from pipeline.compression.prompt import Prompt
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.compression.streams import Plan, Streams, spread
from pipeline.compression.tokens import Tokenising
from pipeline.compression.units import MAX_TOKENS
from schemas.compress import IterativeSpec
from schemas.document import SEPARATOR

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenLevel:
    """``spec`` says how; ``size``: tokens in a segment, one part of the prompt where nothing is iterated."""

    scorer: Scorer
    streams: Streams
    spec: IterativeSpec
    size: int

    @classmethod
    def of(cls, scorer: Scorer, tokenising: Tokenising, spec: IterativeSpec) -> TokenLevel:
        """Over this scorer and its tokenizer."""
        separator = tokenising.tokenise([SEPARATOR])[0].ids
        size = min(spec.iterative_size, max(1, scorer.prefix // 4))
        segment = size if spec.iterative else 2**62
        return cls(scorer, Streams(tokenising.start_id(), separator, segment), spec, size)

    @property
    def abreast(self) -> int:
        """As many prompts as fill a pass, in which each has a segment and what was kept of the one before."""
        return max(1, self.scorer.batch_tokens // (2 * (self.size + MAX_TOKENS)))

    def margins(self, prompts: Sequence[Prompt], plans: Sequence[Plan], passed: Passed) -> list[Floats]:
        """How far each unit lies above its segment's threshold; ``-inf`` in parts that are not in the plan."""
        plans = [self._informed(prompt, plan) for prompt, plan in zip(prompts, plans, strict=True)]
        work = [place for place, plan in enumerate(plans) if len(plan.scored)]
        streams = self.streams.of([prompts[place] for place in work], [plans[place] for place in work])
        if self.spec.iterative:
            found = rank(self.scorer, streams, self.size, passed)
        else:
            found = rank_once(self.scorer, streams, passed)
        ranked = dict(zip(work, found, strict=True))
        return [
            spread(prompt, plan, ranked.get(place))
            for place, (prompt, plan) in enumerate(zip(prompts, plans, strict=True))
        ]

    def _informed(self, prompt: Prompt, plan: Plan) -> Plan:
        """The plan with the frame and TF-IDF where the spec wants them: as weights, or to settle units unread."""
        if self.spec.frame:
            plan = replace(plan, frame=frame_of(prompt))
        by_weight = self.spec.importance == "surprisal-tfidf"
        if not by_weight and not self.spec.skim:
            return plan
        weights = unit_weights(Words.of(prompt))
        gone = skimmed(prompt, plan, weights, self.spec.skim) if self.spec.skim else None
        return replace(plan, weights=weights if by_weight else None, gone=gone)


def skimmed(prompt: Prompt, plan: Plan, weights: Floats, share: float) -> NDArray[np.bool_]:
    """Units that TF-IDF alone settles: of each context that is read the lowest, up to ``share`` of its tokens.

    Never more than may go at the context's rate, and nothing that must stay or is of the frame.
    """
    bounds = np.cumsum([0, *(len(part.places) for part in prompt.parts)])
    gone = np.zeros(int(bounds[-1]), bool)
    for place, rate in zip(plan.scored, plan.rates, strict=True):
        part = prompt.parts[place]
        most = min(share, 1 - rate) * part.length if part.role == "context" else 0
        if most <= 0:
            continue
        lowest = np.argsort(weights[bounds[place] : bounds[place + 1]], kind="stable")
        lowest = lowest[~part.forced[lowest]]
        if plan.frame is not None:
            lowest = lowest[~plan.frame[bounds[place] + lowest]]
        fits = np.cumsum(part.costs[lowest]) <= most
        gone[bounds[place] + lowest[fits]] = True
    return gone
