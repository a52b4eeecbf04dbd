"""One attempt at a training, whatever is trained: from the last checkpoint, or the beginning, to what came of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pipeline.alignment.measure import Measure, mean
from pipeline.alignment.pairs import Pair, divide, refusal
from pipeline.alignment.training import Plan, Trainer
from pipeline.checkpoints import Checkpoint, Checkpoints
from pipeline.holding_out import in_order
from pipeline.meter import Meter
from pipeline.models import LoadedModel
from pipeline.stages import Halt, Outcome, Result, Run, Stopped
from schemas.align import TrainingSpec
from schemas.document import Document
from schemas.job import digest

Extra = defaultdict[int, dict[str, Any]]
"""More columns of documents, by their ``seq``."""


class Lesson(Protocol):
    """What tells stages that train apart."""

    @property
    def spec(self) -> TrainingSpec:
        """How it is trained."""
        ...

    def identity(self) -> Any:
        """As of any stage."""
        ...

    def learner(self, run: Run) -> LoadedModel:
        """A copy of the model that learns, as it is before. Raises ``Halt`` for one that cannot."""
        ...

    def teacher(self, run: Run) -> LoadedModel | None:
        """The model whose distribution is imitated, if any."""
        ...

    def pairs(self, documents: Sequence[Document], loaded: LoadedModel, each: Callable[[], None]) -> Iterator[Pair]:
        """The pair of each document; ``each`` is called now and then, and may raise."""
        ...

    def tokens_afterwards(self, held: Sequence[Pair]) -> int:
        """Those that ``publish`` will go through, about."""
        ...

    def publish(self, trained: Trained, run: Run) -> Extra:
        """Put what was trained into ``run.folder``, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training: ``before`` and ``after`` are of the ``held`` pairs, in order."""

    loaded: LoadedModel
    trainer: Trainer
    held: Sequence[Pair]
    before: Sequence[Measure]
    after: Sequence[Measure]

    @property
    def means(self) -> tuple[Measure, Measure]:
        """Before and after, over all tokens of the held-out answers."""
        tokens = [pair.answer_tokens for pair in self.held]
        return mean(self.before, tokens), mean(self.after, tokens)


def learn(lesson: Lesson, documents: Sequence[Document], run: Run) -> list[Outcome]:
    """One outcome per document, in order. What was trained lies in ``run.folder``, if there is one.

    Raises ``Stopped``, after a checkpoint, when the run is stopping, and ``Halt`` for what a person must mend.
    """
    if run.stopping():
        raise Stopped
    outcomes: dict[int, Outcome] = {}
    good = []
    for document in in_order(documents):
        if why := refusal(document):
            outcomes[document.seq] = why
        else:
            good.append(document)
    run.progress(len(outcomes), 0)
    if good:
        outcomes.update(_Session(lesson, good, run).outcomes())
    return [outcomes[document.seq] for document in documents]


class _Session:
    def __init__(self, lesson: Lesson, documents: Sequence[Document], run: Run) -> None:
        self.lesson, self.spec, self.run, self.began = lesson, lesson.spec, run, time.perf_counter()
        run.models.close()  # what another job's shards left on the device: a training needs the room
        self.loaded = lesson.learner(run)
        self.pairs = list(lesson.pairs(documents, self.loaded, self._alive))
        self.trained, self.held = divide(self.pairs, self.spec.held_out)
        if not self.held:
            why = "one prompt alone cannot be trained on and measured: give at least two different prompts"
            raise Halt(f"{self.spec.kind}: {why}")
        self.plan = Plan(self.spec, len(self.trained))
        self.meter = Meter(run, len(documents), self._work())
        self.trainer = Trainer(self.spec, self.loaded, lesson.teacher(run), self._passed)
        self.checkpoints = self._checkpoints(documents)
        self.step, self.before_seconds, self.saved = 0, 0.0, time.perf_counter()
        self.before: list[Measure] = []

    def outcomes(self) -> dict[int, Outcome]:
        """Train to the end and measure."""
        self._restore()
        try:
            if not self.before:
                self.run.say("measuring before the first step")
                self.before = self.trainer.measure(self.held)
            while self.step < self.plan.steps:
                batch = [self.trained[number] for number in self.plan.batch(self.step)]
                loss = self.trainer.step(batch, self.plan.learning_rate(self.step))
                self.step += 1
                self.run.say(f"step {self.step:,} of {self.plan.steps:,}, loss {loss:.3f}")
                if time.perf_counter() - self.saved >= self.spec.checkpoint_seconds:
                    self._save()
        except Stopped:
            self._save()
            raise
        self._save_last()
        self.run.say("measuring what was learned")
        done = Trained(self.loaded, self.trainer, self.held, self.before, self.trainer.measure(self.held))
        more = self.lesson.publish(done, replace(self.run, progress=lambda _, tokens: self.meter.add(tokens, 3)))
        self.meter.finish()
        return self._results(done, more)

    def _work(self) -> int:
        """Of the whole training, as the meter counts: a token read is 1, one that is learned from 3."""
        read, learned = (sum(len(pair.ids) - 1 for pair in pairs) for pairs in (self.held, self.trained))
        return 2 * read + 3 * (self.spec.epochs * learned + self.lesson.tokens_afterwards(self.held))

    def _alive(self) -> None:
        if self.run.stopping():
            raise Stopped(f"{self.spec.kind}: the worker is stopping, or the job was cancelled")
        self.run.progress(0, 0)

    def _passed(self, tokens: int, weight: int) -> None:
        self.meter.add(tokens, weight)
        self._alive()

    def _checkpoints(self, documents: Sequence[Document]) -> Checkpoints | None:
        if self.run.folder is None:
            return None
        corpus = [[one.content_hash, one.answer] for one in documents]
        key = digest([self.spec.output_settings(), self.lesson.identity(), corpus])
        return Checkpoints(f"{self.run.folder}/checkpoints", key)

    def _restore(self) -> None:
        found = self.checkpoints.latest() if self.checkpoints else None
        if found is None:
            return
        self.before = [Measure(*one) for one in found.tensors["before"].tolist()]
        self.trainer.restore(found.tensors)
        self.step, self.before_seconds = found.step, found.seconds
        done = [self.trained[number] for step in range(self.step) for number in self.plan.batch(step)]
        self.meter.skip(sum(len(pair.ids) - 1 for pair in self.held) + 3 * sum(len(pair.ids) - 1 for pair in done))

    def _save(self) -> None:
        self.saved = time.perf_counter()
        if self.checkpoints is not None and self.before:
            self.checkpoints.save(self._checkpoint(self.trainer.tensors()))

    def _save_last(self) -> None:
        """For an attempt after this one there is nothing to learn: the weights alone, and nothing beside them."""
        if self.checkpoints is not None:
            self.checkpoints.save(self._checkpoint(self.trainer.tensors(optimiser=False)), kept=1)

    def _checkpoint(self, tensors: dict[str, torch.Tensor]) -> Checkpoint:
        before = torch.tensor(self.before, dtype=torch.float64)
        return Checkpoint(self.step, self._seconds(), {**tensors, "before": before})

    def _seconds(self) -> float:
        return self.before_seconds + time.perf_counter() - self.began

    def _results(self, done: Trained, more: Extra) -> dict[int, Outcome]:
        both = zip(done.before, done.after, strict=True)
        measured = dict(zip((pair.document.seq for pair in self.held), both, strict=True))
        seconds = self._seconds()
        each = seconds / sum(len(pair.ids) - 1 for pair in self.pairs)
        places = ((pair, pair.document.seq) for pair in self.pairs)
        return {seq: self._result(pair, measured.get(seq), more[seq], each, seconds) for pair, seq in places}

    def _result(
        self, pair: Pair, measured: tuple[Measure, Measure] | None, more: dict[str, Any], each: float, latency: float
    ) -> Result:
        tokens = len(pair.ids) - 1
        before, after = measured or (None, None)
        fields = {
            "split": "held_out" if measured else "train",
            "tokens_prompt_read": tokens - pair.answer_tokens,
            "tokens_answer": pair.answer_tokens,
            "nll_before": before and before.nats,
            "nll_after": after and after.nats,
            "agreement_before": before and before.agreement,
            "agreement_after": after and after.agreement,
            f"{self.spec.kind}_seconds": each * tokens,
            **more,
        }
        return Result(fields, tokens, pair.answer_tokens, seconds=each * tokens, latency_seconds=latency)
