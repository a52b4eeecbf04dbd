"""One attempt at a training of an encoder: from the last checkpoint, or the beginning, to its files and its worth."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import torch

from pipeline.accounting.wording import counted
from pipeline.batching import out_of_memory
from pipeline.checkpoints import Checkpoints
from pipeline.holding_out import in_order
from pipeline.memory.attempt import Attempt
from pipeline.memory.beginning import begun, is_half, some_slots
from pipeline.memory.encoder import interpolate, rounded, write_encoder
from pipeline.memory.lessons import rate
from pipeline.memory.peers import shared
from pipeline.memory.plan import Numbers, Plan, Signs
from pipeline.memory.sharing import Alone
from pipeline.memory.stage import ENCODER, LAST_GOOD, SAMPLES, Training
from pipeline.memory.target import check_head
from pipeline.memory.training import Diverged, Part, Trainer, train
from pipeline.meter import Meter
from pipeline.models import LoadedModel
from pipeline.models.encoders import EncoderManifest
from pipeline.stages import Halt, Outcome, Run, Stopped
from schemas.document import Document
from schemas.job import digest

log = logging.getLogger(__name__)


def learn(stage: Training, documents: Sequence[Document], run: Run) -> list[Outcome]:
    """One outcome per document, in order. The encoder lies in ``run.folder``, if there is one.

    Raises ``Stopped``, after a checkpoint, when the run is stopping, and ``Halt`` or ``ModelError`` for what a person
    must mend.
    """
    began, kind = time.perf_counter(), stage.spec.kind
    _alive(kind, run)
    if not documents:
        return []
    run.models.close()  # what another job's shards left on the device: a training needs the room
    loaded = run.models.own_copy(stage.target.model, stage.spec.dtype, stage.spec.device)
    check_head(loaded.model, loaded.ref.name)
    plan = stage.plan(in_order(documents), loaded, lambda: _alive(kind, run))
    outcomes: dict[int, Outcome] = {**plan.refused}
    run.progress(len(outcomes), 0)
    with _memory_for(kind, plan), shared(stage, documents, loaded.device, lambda: _alive(kind, run)) as sharing:
        outcomes.update(_Session(stage, plan, loaded, run, sharing, began).outcomes())
    return [outcomes[document.seq] for document in documents]


def _alive(kind: str, run: Run) -> None:
    if run.stopping():
        raise Stopped(f"{kind}: the worker is stopping, or the job was cancelled")
    run.progress(0, 0)


@contextlib.contextmanager
def _memory_for(kind: str, plan: Plan) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise Halt(f"{kind}: memory ran out; {plan.less}; the last checkpoint is kept") from error


class _Session:
    def __init__(
        self, stage: Training, plan: Plan, loaded: LoadedModel, run: Run, sharing: Alone, began: float
    ) -> None:
        self.stage, self.spec, self.plan, self.run, self.loaded = stage, stage.spec, plan, run, loaded
        self.coder = begun(self.spec, loaded, plan, stage.beginning())
        kept = self.coder.trained() if self.spec.interpolation < 1 else {}
        self.first = {name: one.detach().cpu().clone() for name, one in kept.items()}
        self.trainer = Trainer(self.coder, self.spec, half=is_half(self.spec))
        self.sharing = sharing
        self.trainer.share(sharing)
        self.measurer = plan.measurer(self.coder)
        self.attempt = Attempt(self.trainer, self._checkpoints(), began)
        self.meter = Meter(run, len(plan.corpus), sum(self.measurer.work) + self._learning(self.spec.steps))
        self.signs = Signs(lambda: _alive(self.spec.kind, run), lambda tokens: self.meter.add(tokens, 1))

    def outcomes(self) -> dict[int, Outcome]:
        """Train to the end and measure."""
        attempt = self.attempt
        if attempt.restore():
            self.meter.skip(self.measurer.work[0] + self._learning(attempt.step))
        try:
            self._learn()
        except Diverged as error:
            raise Halt(self._diverged(error)) from error
        attempt.save_last()
        if self.first:
            interpolate(self.coder, self.first, self.spec.interpolation)
        if not self._finish():
            raise Halt(
                f"{self.spec.kind}: after {counted(self.spec.steps, 'step')} there are weights or slots that float16, "
                f"in which an encoder is kept, cannot hold. {self._lower()}"
            )
        self.run.say("measuring what was learned")
        after = self.measurer.after(self.signs)
        self._write(ENCODER, self.spec.steps, after)
        self.meter.finish()
        return self.plan.outcomes(attempt.before, after, attempt.seconds)

    def _finish(self) -> bool:
        """The encoder is what will be read, to be measured. Says whether that is all numbers."""
        rounded(self.coder)
        self.coder.describe(some_slots(self.spec, self.plan, self.coder))
        return all(bool(one.isfinite().all()) for one in self.coder.kept().values())

    def _lower(self) -> str:
        return f"Lower learning_rate, which is {self.spec.learning_rate:g}, or raise warmup, and run the job again"

    def _write(self, name: str, steps: int, after: Sequence[Numbers]) -> str | None:
        """The encoder as it is after so many steps, in the folder ``name``: where that is, if anywhere."""
        if self.run.folder is None:
            return None
        worth, folder = self.plan.figures(self.attempt.before, after), f"{self.run.folder}/{name}"
        base, spec = self.loaded.ref, self.spec.encoder.model_dump(mode="json")
        manifest = EncoderManifest(base.name, base.digest, spec, steps, worth[0], "", answers=worth[1])
        write_encoder(self.coder, self.attempt.curve[:steps], manifest, folder)
        return folder

    def _learn(self) -> None:
        attempt = self.attempt
        try:
            if not attempt.before:
                self.run.say("measuring before the first step")
                attempt.before = self.measurer.before(self.signs)
            self.sharing.begin(self.trainer.tensors)
            train(self.trainer, self._parts, attempt.step, self._told)
        except Stopped:
            attempt.save()  # which may find that the last step counts for nothing
            raise

    def _parts(self, step: int) -> Sequence[Part]:
        self.sharing.announce(step)
        return self.plan.parts(step, self.sharing.rank, self.sharing.world)

    def _diverged(self, error: Diverged) -> str:
        steps = self.attempt.kept
        kept = f"the checkpoint after {counted(steps, 'step')} is kept" if steps else "there is no checkpoint yet"
        said = f"{self.spec.kind}: {error}. Nothing was learned from that step, and {kept}. {self._lower()}"
        learned = f"what was learned in {counted(error.number, 'step')}"
        try:
            folder = self._last_good(error.number)
        except OSError as full:  # as a disk may be, and the divergence is what is to be mended
            return f"{said}; {learned} cannot be written: {full}"
        if folder is None:
            kept_nowhere = not error.number or self.run.folder is None
            return said if kept_nowhere else f"{said}; {learned} float16, in which an encoder is kept, cannot hold"
        where = f"a copy of {folder} on this machine" if "://" in folder else f'"{folder}"'
        return f"{said}; begin = {where} goes on from {learned}"

    def _last_good(self, steps: int) -> str | None:
        """What was learned before, as an encoder: its checkpoints are no other training's, and this one would diverge
        again. None where it is none, or nobody keeps it."""
        if not steps or self.run.folder is None:
            return None
        if not self._finish():
            return None
        return self._write(LAST_GOOD, steps, self.measurer.after(self.signs))

    def _checkpoints(self) -> Checkpoints | None:
        if self.run.folder is None:
            return None
        key = digest([self.spec.output_settings(), self.stage.identity(), self.plan.corpus])
        return Checkpoints(f"{self.run.folder}/checkpoints", key)

    def _learning(self, steps: int) -> int:
        """As the meter counts: a token read is 1, one that is learned from 3."""
        return 3 * sum(map(self.plan.tokens, range(steps)))

    def _told(self, step: int, loss: torch.Tensor) -> None:
        self.attempt.learned(loss, self.spec.learning_rate * rate(self.spec, step))
        self.meter.add(self.plan.tokens(step), 3)
        self._say(step + 1)
        self._show(step)
        self.attempt.save_in_time(self.spec.checkpoint_seconds)
        _alive(self.spec.kind, self.run)

    def _say(self, steps: int) -> None:
        loss = self.attempt.lately
        self.run.say(f"step {steps:,} of {self.spec.steps:,}" + (f", loss {loss:.3f}" if loss is not None else ""))

    def _show(self, step: int) -> None:
        if step % max(1, self.spec.steps // SAMPLES) or not log.isEnabledFor(logging.INFO):
            return
        self.trainer.settle()  # a sample would wait for who is gone
        loss, sample = self.attempt.curve[-1][1], self.measurer.sample()
        log.info("%s: step %d of %d, loss %.3f; %s", self.spec.kind, step, self.spec.steps, loss, sample)
