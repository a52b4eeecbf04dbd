"""How much of spans their slots hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.batching import run_packed
from pipeline.evaluation.overlap import Bleu
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.fit import AS_MADE, Fit
from pipeline.memory.head_loss import nats_of
from pipeline.memory.ragged import pass_tokens, written_tokens
from pipeline.memory.reconstruct import prefix_match, reconstructed
from pipeline.memory.refining import refined
from pipeline.memory.spans import Parts
from pipeline.passes.compiling import uncompiled

NAN = float("nan")

SAMPLED = 64
"""Tokens of a sample: one row is written at the speed of one, while a training waits."""


class Measure(NamedTuple):
    """Of a span: mean nats of saying its tokens behind its slots, and the share of them that were the likeliest; of the
    span written out greedily, BLEU-4 (NaN without sacrebleu) and the share before the first wrong token. The last two
    are NaN where it was not written out."""

    nats: float
    agreement: float
    bleu4: float = NAN
    prefix: float = NAN


@contextlib.contextmanager
def plainly(device: torch.device, half: bool) -> Iterator[None]:
    """Passes that learn nothing, in half precision (autocast to bfloat16) or not. Other shapes than a training's, each
    but a few times, are not worth compiling for."""
    with torch.inference_mode(), uncompiled(device), torch.autocast(device.type, torch.bfloat16, enabled=half):
        yield


def encoded(
    coder: Autoencoder, ids: torch.Tensor, parts: Parts, fit: Fit = AS_MADE, alive: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Contexts ``[rows, n]`` -> ``[rows, k, d]``, the slots of their spans in order; parts add up to n tokens.
    ``fit``, ``alive``: as of ``refining``."""
    spans = torch.split(ids, [tokens for tokens, _ in parts], 1)
    found = [coder.encode(one, slots) for one, (_, slots) in zip(spans, parts, strict=True)]
    if fit.steps:
        pairs = zip(spans, found, strict=True)
        found = [torch.stack(refined(coder, [*one.cpu().numpy()], [*its], fit, alive)) for one, its in pairs]
    return torch.cat(found, 1)


def mean(measured: Sequence[Measure]) -> Measure:
    """Over the spans of which it is known; NaN where of none."""
    columns = np.array(measured, np.float64).T
    return Measure(*(float(np.mean(known)) if (known := one[~np.isnan(one)]).size else NAN for one in columns))


@dataclass(frozen=True, slots=True)
class Measuring:
    """Contexts ``[rows, n]`` through the slots of their ``parts``, at most ``batch_tokens`` in a pass, in half
    precision (autocast) or not. ``alive`` is called before each pass and each token that is written, and may raise;
    ``passed`` after a pass, with its tokens. ``kept``: what is read of slots ``[rows, k, d]``; ``fit``: how these
    are fitted. ``known``: slots of contexts, by the bytes of these, which are not made again."""

    coder: Autoencoder
    tokenizer: Any
    spans: torch.Tensor
    parts: Parts
    batch_tokens: int
    half: bool
    alive: Callable[[], None] = lambda: None
    passed: Callable[[int], None] = lambda tokens: None
    kept: Callable[[torch.Tensor], torch.Tensor] = lambda slots: slots
    fit: Fit = AS_MADE
    known: dict[bytes, torch.Tensor] | None = None

    def measure(self, written: int) -> list[Measure]:
        """Of every span; the first ``written`` of them are written out, too."""
        with plainly(self.spans.device, self.half):
            said = self._packed(len(self.spans), self._said, self._most)
            most = written_tokens(self.batch_tokens, self.spans.device)
            back = self._packed(min(written, len(self.spans)), self._back, most)
        return [Measure(*one, *two) for one, two in zip(said, [*back, *[()] * (len(said) - len(back))], strict=True)]

    def sample(self, row: int) -> tuple[str, str]:
        """How a span begins, and what comes back of that."""
        ids = self.spans[row : row + 1]
        with plainly(self.spans.device, self.half):
            found = reconstructed(self.coder, self._encoded(ids), min(SAMPLED, ids.shape[1]))
        expected, came = (self.tokenizer.decode(one[0, :SAMPLED]) for one in (ids, found))
        return expected, came

    @property
    def _most(self) -> int:
        return pass_tokens(self.batch_tokens, self.spans.device)

    @property
    def _row(self) -> int:
        """Tokens of a pass that a row takes."""
        more = sum(self.fit.places(many) for _, many in self.parts)
        return sum(many for _, many in self.parts) + 1 + self.spans.shape[1] + more

    def _packed(self, rows: int, work: Callable[[torch.Tensor], Sequence[tuple[float, float]]], most: int) -> list[Any]:
        def some(numbers: list[int]) -> Sequence[tuple[float, float]]:
            self.alive()
            found = work(self.spans[numbers])
            self.passed(len(numbers) * self.spans.shape[1])
            return found

        return run_packed([self._row] * rows, most, some)

    def _said(self, ids: torch.Tensor) -> list[tuple[float, float]]:
        tags = torch.full((len(ids),), TAGS.index("AE"), device=ids.device)
        head = self.coder.model.get_output_embeddings().weight
        states = self.coder.states(self._encoded(ids), tags, ids).to(head.dtype)
        likely = torch.stack([(one @ head.T).argmax(-1) for one in states])
        nats = nats_of(states, head, ids).mean(1)
        return list(zip(nats.tolist(), (likely == ids).float().mean(1).tolist(), strict=True))

    def _back(self, ids: torch.Tensor) -> list[tuple[float, float]]:
        slots = []
        for some in torch.split(ids, max(1, self._most // self._row)):
            self.alive()
            slots.append(self._encoded(some))
        found = reconstructed(self.coder, torch.cat(slots), ids.shape[1], alive=self.alive)
        texts = zip(*(self.tokenizer.batch_decode(one) for one in (found, ids)), strict=True)
        bleu = Bleu() if find_spec("sacrebleu") else None
        scores = [bleu(came, [expected])[0] if bleu else NAN for came, expected in texts]
        return list(zip(scores, prefix_match(found, ids).tolist(), strict=True))

    def _encoded(self, ids: torch.Tensor) -> torch.Tensor:
        known = {} if self.known is None else self.known
        rows = [one.tobytes() for one in ids.cpu().numpy()]
        if new := [at for at, row in enumerate(rows) if row not in known]:
            found = encoded(self.coder, ids[new], self.parts, self.fit, self.alive)
            known.update(zip((rows[at] for at in new), found, strict=True))
        return self.kept(torch.stack([known[row] for row in rows]))
