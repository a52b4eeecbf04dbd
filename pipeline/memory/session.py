"""One attempt at a pretraining: from the last checkpoint, or the beginning, to an encoder and what it holds."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import torch

from pipeline.batching import out_of_memory
from pipeline.checkpoints import Checkpoint, Checkpoints
from pipeline.holding_out import in_order
from pipeline.memory.beginning import begun, is_half
from pipeline.memory.corpus import Corpus
from pipeline.memory.encoder import Row, rounded, write_encoder
from pipeline.memory.measure import Measure, Measuring
from pipeline.memory.results import manifest_of, results
from pipeline.memory.spans import slots_of
from pipeline.memory.stage import ENCODER, Pretrain
from pipeline.memory.texts import Text, divide, refusal, tokenised
from pipeline.memory.training import Diverged, Pretrainer, lesson, pretrain, rate, rows_of
from pipeline.meter import Meter
from pipeline.models import LoadedModel
from pipeline.stages import Halt, Outcome, Run, Stopped
from schemas.document import Document
from schemas.job import digest

log = logging.getLogger(__name__)

SAMPLES = 10
"""Held-out spans shown in the log over a training."""


def learn(stage: Pretrain, documents: Sequence[Document], run: Run) -> list[Outcome]:
    """One outcome per document, in order. The encoder lies in ``run.folder``, if there is one.

    Raises ``Stopped``, after a checkpoint, when the run is stopping, and ``Halt`` for what a person must mend.
    """
    began = time.perf_counter()
    _alive(run)
    if not documents:
        return []
    loaded = run.models.own_copy(stage.target.model, stage.spec.dtype, stage.spec.device)
    texts = list(tokenised(in_order(documents), loaded, lambda: _alive(run)))
    outcomes: dict[int, Outcome] = {one.document.seq: why for one in texts if (why := refusal(one, stage.spec))}
    good = [one for one in texts if one.document.seq not in outcomes]
    if not good:
        raise Halt(f"pretrain: none of {len(texts)} texts is long enough: give longer texts, or shorter lessons")
    if outcomes:
        log.info("pretrain: %d of %d texts are left out, empty or too short", len(outcomes), len(texts))
    run.progress(len(outcomes), 0)
    with _memory_for(stage):
        outcomes.update(_Session(stage, good, loaded, run, began).outcomes())
    return [outcomes[document.seq] for document in documents]


def _alive(run: Run) -> None:
    if run.stopping():
        raise Stopped("pretrain: the worker is stopping, or the job was cancelled")
    run.progress(0, 0)


@contextlib.contextmanager
def _memory_for(stage: Pretrain) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise Halt(
            f"pretrain: memory ran out; tokens_per_step is {stage.spec.tokens_per_step}: halve it, or take shorter "
            "lessons; the last checkpoint is kept"
        ) from error


class _Session:
    def __init__(self, stage: Pretrain, texts: Sequence[Text], loaded: LoadedModel, run: Run, began: float) -> None:
        self.stage, self.spec, self.run, self.loaded, self.texts = stage, stage.spec, run, loaded, texts
        self.began, self.before_seconds, self.saved, self.step = began, 0.0, time.perf_counter(), 0
        trained, self.held = divide(texts, self.spec)
        self.corpus = Corpus.of(text.ids for text in trained)
        self.meter = Meter(run, len(texts), self._work())
        self.coder = begun(self.spec, loaded, self.corpus, stage.beginning())
        self.trainer = Pretrainer(self.coder, self.spec, half=is_half(self.spec))
        self.measuring = self._measuring()
        self.checkpoints = self._checkpoints()
        self.kept: int | None = None
        self.before: list[Measure] = []
        self.curve: list[Row] = []

    def outcomes(self) -> dict[int, Outcome]:
        """Train to the end and measure."""
        self._restore()
        try:
            if not self.before:
                self.before = self.measuring.measure(self.spec.measured)
            pretrain(self.trainer, self.corpus, self.step, self._told)
        except Stopped:
            self._save()
            raise
        except Diverged as error:
            kept = f"the checkpoint after {self.kept} steps is kept" if self.kept else "there is no checkpoint yet"
            raise Halt(
                f"pretrain: {error}. Nothing was learned from that step, and {kept}. Lower learning_rate, which is "
                f"{self.spec.learning_rate:g}, or raise warmup, and run the job again"
            ) from error
        self._save_last()
        rounded(self.coder)
        after = self.measuring.measure(self.spec.measured)
        if self.run.folder is not None:
            manifest = manifest_of(self.spec, self.loaded.ref, self.before, after)
            write_encoder(self.coder, self.curve, manifest, f"{self.run.folder}/{ENCODER}")
        self.meter.finish()
        return results(self.spec, self.texts, self._measured(after), self._seconds())

    def _measuring(self) -> Measuring:
        last = self.spec.lessons[-1]
        spans = torch.stack([torch.from_numpy(text.ids[: last.tokens]).long() for text in self.held])
        return Measuring(
            self.coder, self.loaded.tokenizer, spans.to(self.loaded.device), slots_of(last.tokens, last.ratio),
            self.spec.batch_tokens, is_half(self.spec),
            alive=lambda: _alive(self.run), passed=lambda tokens: self.meter.add(tokens, 1),
        )  # fmt: skip

    def _checkpoints(self) -> Checkpoints | None:
        if self.run.folder is None:
            return None
        corpus = [text.document.content_hash for text in self.texts]
        key = digest([self.spec.output_settings(), self.stage.identity(), corpus])
        return Checkpoints(f"{self.run.folder}/checkpoints", key)

    def _tokens(self, step: int) -> int:
        one = lesson(self.spec, step)
        return rows_of(self.spec, one) * one.tokens

    def _work(self) -> int:
        """As the meter counts: a token read is 1, one that is learned from 3."""
        return 2 * self._reading() + self._learning(self.spec.steps)

    def _reading(self) -> int:
        spans = len(self.held) + min(len(self.held), self.spec.measured)
        return spans * self.spec.lessons[-1].tokens

    def _learning(self, steps: int) -> int:
        return 3 * sum(map(self._tokens, range(steps)))

    def _told(self, step: int, loss: torch.Tensor) -> None:
        self.step = step + 1
        self.curve.append((step, float(loss), self.spec.learning_rate * rate(self.spec, step), self._seconds()))
        self.meter.add(self._tokens(step), 3)
        self._show(step)
        if time.perf_counter() - self.saved >= self.spec.checkpoint_seconds:
            self._save()
        _alive(self.run)

    def _show(self, step: int) -> None:
        if step % max(1, self.spec.steps // SAMPLES) or not log.isEnabledFor(logging.INFO):
            return
        loss, (span, came) = self.curve[-1][1], self.measuring.sample(0)
        log.info("pretrain: step %d of %d, loss %.3f; %r comes back as %r", step, self.spec.steps, loss, span, came)

    def _restore(self) -> None:
        found = self.checkpoints.latest() if self.checkpoints else None
        if found is None:
            return
        self.before = [Measure(*one) for one in found.tensors["before"].tolist()]
        self.curve = [(int(step), *rest) for step, *rest in found.tensors["curve"].tolist()]
        self.trainer.restore(found.tensors)
        self.step, self.before_seconds = found.step, found.seconds
        self.kept = found.step
        self.meter.skip(self._reading() + self._learning(self.step))

    def _save(self) -> None:
        self.saved = time.perf_counter()
        if self.checkpoints is not None and self.before:
            self.checkpoints.save(self._checkpoint(self.trainer.tensors()))
            self.kept = self.step

    def _save_last(self) -> None:
        """For an attempt after this one there is nothing to learn: the weights alone, and nothing beside them."""
        if self.checkpoints is not None:
            kept = {name: one for name, one in self.trainer.tensors().items() if name.startswith("weight.")}
            self.checkpoints.save(self._checkpoint(kept), kept=1)

    def _checkpoint(self, tensors: dict[str, torch.Tensor]) -> Checkpoint:
        before, curve = (torch.tensor(rows, dtype=torch.float64) for rows in (self.before, self.curve))
        return Checkpoint(self.step, self._seconds(), {**tensors, "before": before, "curve": curve})

    def _seconds(self) -> float:
        return self.before_seconds + time.perf_counter() - self.began

    def _measured(self, after: Sequence[Measure]) -> dict[int, tuple[Measure, Measure]]:
        both = zip(self.before, after, strict=True)
        return dict(zip((text.document.seq for text in self.held), both, strict=True))
