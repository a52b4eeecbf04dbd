"""Tagged contexts: ``<llmlingua, rate=0.4, compress=True>...</llmlingua>`` around segments, not nested."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compression.reference.crash import Crash

_RATE = r"(?:,\s*rate\s*=\s*([\d\.]+))?\s*"
_COMPRESS = r"(?:,\s*compress\s*=\s*(True|False))?\s*"
_TAG = re.compile(rf"<llmlingua\s*{_RATE}{_COMPRESS}{_RATE}{_COMPRESS}>([^<]+)</llmlingua>")
"""Either attribute may come first. What does not match is lost: the library has it so, and so has this fidelity."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``length`` characters to be compressed to ``rate``, or not at all."""

    length: int
    rate: float
    compress: bool


@dataclass(frozen=True, slots=True)
class Tagged:
    """A context without its tags, and the segments it consists of."""

    text: str
    segments: tuple[Segment, ...]


def parse(context: str, rate: float) -> Tagged:
    """``context`` without tags. A segment without a rate, or of rate 0, has ``rate``; text outside tags is lost.

    A context that does not begin or end with a tag gets one there.
    """
    opened = context if context.startswith("<llmlingua") else "<llmlingua>" + context
    closed = opened if opened.endswith("</llmlingua>") else opened + "</llmlingua>"
    texts, segments = [], []
    for found in _TAG.finditer(closed):
        first_rate, first_compress, last_rate, last_compress, text = found.groups()
        compress = (first_compress or last_compress or "True") == "True"
        texts.append(text)
        segments.append(Segment(len(text), _rate(first_rate or last_rate, rate, compress), compress))
    return Tagged("".join(texts), tuple(segments))


def _rate(written: str | None, rate: float, compress: bool) -> float:
    try:
        own = float(written) if written else 0.0
    except ValueError:
        raise Crash(f"rate={written} is no number") from None
    used = own or (rate if compress else 1.0)
    if used > 1:
        raise Crash(f"a segment has the rate {used:g}, which exceeds 1")
    return used


def merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbours of equal rate and flag as one."""
    joined: list[Segment] = []
    for one in segments:
        if joined and (joined[-1].rate, joined[-1].compress) == (one.rate, one.compress):
            joined[-1] = Segment(joined[-1].length + one.length, one.rate, one.compress)
        else:
            joined.append(one)
    return tuple(joined)
