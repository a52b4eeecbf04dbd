"""What is asked of an encoder, and what is found of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.comparing import Comparison
from pipeline.memory.fit import AS_MADE, Fit
from pipeline.memory.form import Form
from pipeline.memory.spans import Parts, cut
from pipeline.models import ModelError
from schemas.memory import CONTINUATION, slots_of


@dataclass(frozen=True, slots=True)
class Asked:
    """Contexts of ``tokens`` each at every one of ``ratios`` tokens a slot, cut into spans of ``span`` tokens at most:
    ``rows`` of each kind; ``continued`` tokens behind them; ``half``: passes are autocast to bfloat16. Slots are read
    as they come out of the store in each of ``forms``; all but those that are repeated, unpacked. ``fit``: how they
    are fitted to their spans first. ``starts``: contexts are the first tokens of texts, not from anywhere in them."""

    tokens: tuple[int, ...]
    ratios: tuple[float, ...]
    span: int
    rows: int
    continued: int
    batch_tokens: int
    half: bool
    seed: int = 0
    forms: tuple[Form, ...] = (Form("float16"),)
    fit: Fit = AS_MADE
    starts: bool = False

    def cuts(self) -> list[tuple[int, Parts]]:
        """Every length with every ratio: (tokens, the spans as (tokens, slots))."""
        return [
            (size, tuple((one, slots_of(one, ratio)) for one in cut(size, self.span)))
            for size in self.tokens
            for ratio in self.ratios
        ]


@dataclass(frozen=True, slots=True)
class Repeated:
    """What comes back of ``rows`` contexts from slots as the first form stores them; ``bleu4`` is None without
    sacrebleu."""

    kind: str
    tokens: int
    slots: int
    rows: int
    nats: Interval
    agreement: Interval
    bleu4: Interval | None
    prefix: Interval


@dataclass(frozen=True, slots=True)
class Stored:
    """The same contexts from slots in a form of the store: ``bytes`` of a slot in its file, ``loss`` as ``encode`` says
    it; ``difference``: of BLEU-4 to the first form's, paired, None for that itself."""

    kind: str
    tokens: int
    slots: int
    rows: int
    form: str
    bytes: float
    loss: float
    nats: Interval
    bleu4: Interval | None
    difference: Interval | None
    prefix: Interval


@dataclass(frozen=True, slots=True)
class Continued:
    """Perplexities of what follows ``rows`` contexts behind nothing, all of it, its last tokens, its slots."""

    kind: str
    tokens: int
    slots: int
    rows: int
    none: float
    full: float
    tail: float
    behind_slots: float

    @property
    def kept(self) -> float | None:
        """The share of what the context is worth that its slots keep; None where it is worth nothing."""
        return (self.none - self.behind_slots) / (self.none - self.full) if self.none > self.full else None


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds for one context: to encode it, to read its slots, and to read its text."""

    tokens: int
    slots: int
    encode: float
    read_slots: float
    read_text: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found. ``short``: kinds of which no text was long enough, and for how many tokens. ``answers``: what is
    answered from slots, the first side, and from what that is set against. ``refine``: in how many steps slots were
    fitted at most, and to how many ``continuations``. ``starts``: contexts are the first tokens of texts. ``measured``
    of the ``total`` parts that are measured of texts are in it, each with all of its rows."""

    repeated: list[Repeated] = field(default_factory=list)
    continued: list[Continued] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    short: list[tuple[str, int]] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    answers: Comparison | None = None
    refine: int = 0
    continuations: int = 0
    starts: bool = False
    measured: int = 0
    total: int = 0

    @property
    def unfinished(self) -> bool:
        """Whether parts are missing."""
        return self.measured < self.total

    @property
    def compares_forms(self) -> bool:
        """Whether slots were stored in more ways than one."""
        return len(self.stored) > len(self.repeated)

    def plus(self, part: Evaluation) -> Evaluation:
        """With one part more, of which all is measured."""
        return replace(
            self,
            repeated=self.repeated + part.repeated,
            continued=self.continued + part.continued,
            latencies=self.latencies + part.latencies,
            stored=self.stored + part.stored,
            measured=self.measured + 1,
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        said = [{**asdict(one), "kept": one.kept} for one in self.continued]
        return {**asdict(self), "continued": said, "unfinished": self.unfinished}


def check(asked: Asked, window: int | None, most: int) -> None:
    """Raise ``ModelError`` for contexts that the model cannot read, with what stands around them, and for spans of more
    slots than the ``most`` that the encoder makes."""
    for size, parts in asked.cuts():
        for tokens, slots in parts:
            if slots > most:
                raise ModelError(
                    f"a span of {tokens} tokens takes {slots} slots, and its encoder makes {most} at most: raise ratio"
                )
        after = max(1 + asked.continued, CONTINUATION if asked.fit.continuations else 0)  # a BOS stands before it
        places = size + max(sum(slots for _, slots in parts) + 1, after)
        if window is not None and places > window:
            raise ModelError(
                f"contexts of {size} tokens take {places} places with their slots and what follows, and the model "
                f"reads {window} at most: lower --tokens or --continued"
            )
