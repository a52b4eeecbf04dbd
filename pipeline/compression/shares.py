"""What each region of a prompt may keep: rates of tags and JSON keys, of instruction and question, and hierarchies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.budget import Lengths, Rates, fit_rates
from pipeline.compression.quota import TINY, Quota, shared_out
from pipeline.compression.sentences import sentence_ends
from schemas.compress import CompressSpec

if TYPE_CHECKING:
    from pipeline.compression.prompt import Part

Ints = NDArray[np.int64]

_PARAGRAPH = re.compile(r"(?<=\n)[^\S\n]*\n\s*")


def own_budget(parts: Sequence[Part], rate: float, separator: int, spec: CompressSpec) -> float:
    """Tokens of a prompt in which every part and passage keeps just what its own rate says, the rest ``rate``.

    ``separator``: tokens of the blank line between parts.
    """
    total = float(separator * (len(parts) - 1))
    for part in parts:
        default = {"instruction": spec.tau_instruction, "context": rate, "question": spec.tau_question}[part.role]
        total += float((np.where(np.isnan(part.rates), default, part.rates) * part.costs).sum())
    return total


def quota_of(parts: Sequence[Part], budget: int, rate: float, separator: int, spec: CompressSpec) -> Quota | None:
    """The shares of ``budget``, where there are several; passages without a rate of their own have ``rate``.

    Instruction and question may keep what ``tau_instruction`` and ``tau_question`` say; the contexts share the rest
    (equation 2 of arXiv 2310.05736), each region as its rate times its length asks for. LLMLingua sees to the taus
    itself, unless something else has a share too.
    """
    taus = Rates(spec.tau_instruction, 1.0, spec.tau_question)
    free = not spec.RANKS_BY_TAU and any(not part.verbatim for part in parts if part.role != "context")
    if not (free or spec.hierarchy or (np.concatenate([part.regions for part in parts]) >= 0).any()):
        return None
    lengths = {role: sum(part.length for part in parts if part.role == role) for role in _ROLES}
    rates = fit_rates(budget - separator * (len(parts) - 1), Lengths(*(lengths[role] for role in _ROLES)), taus)
    regions, weights, left = _contexts(parts, rate, rates.contexts * lengths["context"], spec.structure == "json")
    allowances = shared_out(left, weights)
    for place, part in enumerate(parts):
        if part.role != "context" and not part.verbatim:
            share = rates.instruction if part.role == "instruction" else rates.question
            regions[place][:] = len(allowances)
            allowances += shared_out(share * part.length, [1.0])
    levels = tuple(np.concatenate(one) for one in _levels(parts)) if spec.hierarchy else ()
    return Quota(np.concatenate(regions), np.array(allowances), levels)


_ROLES = ("instruction", "context", "question")


def _contexts(parts: Sequence[Part], rate: float, total: float, pooled: bool) -> tuple[list[Ints], list[float], float]:
    """The regions of the contexts' units, what each asks for, and what verbatim passages leave of ``total``.

    ``pooled``: regions of the same number are one in all contexts (the values of a JSON key); tags are each their own.
    """
    numbers: dict[tuple[int, int], int] = {}
    weights: list[float] = []
    regions = []
    for place, part in enumerate(parts):
        mine = np.full(len(part.places), -1)
        for own in np.unique(part.regions).tolist() if part.role == "context" else ():
            units = (part.regions == own) & (part.rates != 1)
            if units.any():
                number = numbers.setdefault((-1 if pooled or own < 0 else place, own), len(numbers))
                mine[units] = number
                weights += [TINY] * (number + 1 - len(weights))
                weights[number] += _asked(part, units, rate)
        if part.role == "context":
            total -= float(part.costs[part.rates == 1].sum())
        regions.append(mine)
    return regions, weights, total


def _asked(part: Part, units: NDArray[np.bool_], rate: float) -> float:
    rates = part.rates[units]
    return float((np.where(np.isnan(rates), rate, rates) * part.costs[units]).sum())


def _levels(parts: Sequence[Part]) -> tuple[list[Ints], list[Ints]]:
    """The numbers of the paragraph and of the sentence in which every unit begins."""
    found: tuple[list[Ints], list[Ints]] = ([], [])
    for part in parts:
        paragraphs = [one.start() for one in _PARAGRAPH.finditer(part.text)]
        for numbers, ends in zip(found, (paragraphs, sorted(sentence_ends(part.text))), strict=True):
            begins = np.unique(np.array([0, *ends], dtype=np.int64))
            first = int(numbers[-1].max()) + 1 if numbers else 0
            numbers.append(first + np.searchsorted(begins, part.places, side="right") - 1)
    return found
