"""The align stage: all documents of a job, each a prompt with its answer -> an adapter, and how much it helped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.alignment.measure import Measure, mean
from pipeline.models import check_causal, digest_of, expects_gpu
from pipeline.stages import Halt, Outcome, Result, Run, Stopped
from schemas.align import AlignSpec
from schemas.document import Document
from schemas.job import TargetSpec, digest

if TYPE_CHECKING:
    import torch

    from pipeline.alignment.checkpoints import Checkpoint, Checkpoints
    from pipeline.alignment.pairs import Pair
    from pipeline.alignment.training import Trainer

VERSION = 2
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

_CHARACTERS_PER_SECOND = {"cpu": 1_000, "cuda": 400_000}
"""Rough speed of one pass forward and backward through a 135M model (two cores in float32; one large GPU)."""


@dataclass(frozen=True, slots=True)
class Align:
    """Trains ``spec.model`` on the documents' answers. What it writes of one document depends on all of them."""

    spec: AlignSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Digests of the model that is trained and of the teacher."""
        teacher = self.spec.teacher
        of = partial(digest_of, check=check_causal)
        return [VERSION, of(self.spec.model), of(teacher) if teacher else None]

    def work_seconds(self, characters: int) -> float:
        """Seconds that a document of this length takes over all epochs, roughly."""
        speed = _CHARACTERS_PER_SECOND["cuda" if expects_gpu(self.spec.device) else "cpu"]
        return characters * self.spec.epochs / speed

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order; the adapter lies in ``adapter`` of ``run.folder``, if there is one.

        Raises ``Stopped``, after a checkpoint, when the run is stopping, and ``Halt`` for what a person must mend.
        """
        from pipeline.alignment.pairs import in_order, refusal

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
            outcomes.update(_Session(self, good, run).outcomes())
        return [outcomes[document.seq] for document in documents]


class _Session:
    """One attempt at a training: from the last checkpoint, or the beginning, to the adapter."""

    def __init__(self, stage: Align, documents: Sequence[Document], run: Run) -> None:
        from pipeline.alignment.pairs import divide, tokenise
        from pipeline.alignment.training import Plan, Trainer

        self.spec, self.run, self.began = stage.spec, run, time.perf_counter()
        loaded = run.models.own_copy(self.spec.model, "float32", self.spec.device)
        if loaded.ref.adapter is not None:
            raise Halt(f"align: {self.spec.model} has an adapter already, and a model takes one: align its base anew")
        most = min(self.spec.max_tokens, loaded.window)
        self.pairs = list(tokenise(documents, loaded, most, self._alive))
        self.trained, self.held = divide(self.pairs, self.spec.held_out)
        if not self.held:
            raise Halt("align: one prompt alone cannot be trained on and measured: give at least two different prompts")
        self.plan = Plan(self.spec, len(self.trained))
        self.meter = _Meter(run, len(documents), self._work())
        teacher = (
            run.models.causal_lm(self.spec.teacher, self.spec.dtype, self.spec.device) if self.spec.teacher else None
        )
        self.trainer: Trainer = Trainer(self.spec, loaded, teacher, self._passed)
        self.base_digest = loaded.ref.digest
        self.checkpoints = self._checkpoints(stage, documents)
        self.step, self.before_seconds, self.saved = 0, 0.0, time.perf_counter()
        self.before: list[Measure] = []

    def outcomes(self) -> dict[int, Outcome]:
        """Train to the end and measure."""
        self._restore()
        try:
            if not self.before:
                self.before = self.trainer.measure(self.held)
            while self.step < self.plan.steps:
                batch = [self.trained[number] for number in self.plan.batch(self.step)]
                self.trainer.step(batch, self.plan.learning_rate(self.step))
                self.step += 1
                if time.perf_counter() - self.saved >= self.spec.checkpoint_seconds:
                    self._save()
        except Stopped:
            self._save()
            raise
        self._save_last()
        after = self.trainer.measure(self.held)
        self._publish(after)
        self.meter.finish()
        return self._results(after)

    def _work(self) -> int:
        """Of the whole training, as the meter counts: a token read is 1, one that is learned from 3."""
        read, learned = (sum(len(pair.ids) - 1 for pair in pairs) for pairs in (self.held, self.trained))
        return 2 * read + 3 * self.spec.epochs * learned

    def _alive(self) -> None:
        if self.run.stopping():
            raise Stopped("align: the worker is stopping, or the job was cancelled")
        self.run.progress(0, 0)

    def _passed(self, tokens: int, weight: int) -> None:
        self.meter.add(tokens, weight)
        self._alive()

    def _checkpoints(self, stage: Align, documents: Sequence[Document]) -> Checkpoints | None:
        from pipeline.alignment.checkpoints import Checkpoints

        if self.run.folder is None:
            return None
        corpus = [[one.content_hash, one.answer] for one in documents]
        key = digest([self.spec.output_settings(), stage.identity(), corpus])
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
        import torch

        from pipeline.alignment.checkpoints import Checkpoint

        before = torch.tensor(self.before, dtype=torch.float64)
        return Checkpoint(self.step, self._seconds(), {**tensors, "before": before})

    def _seconds(self) -> float:
        return self.before_seconds + time.perf_counter() - self.began

    def _publish(self, after: Sequence[Measure]) -> None:
        from pipeline.alignment.adapter import write_adapter

        if self.run.folder is None:
            return
        tokens = [pair.answer_tokens for pair in self.held]
        means = mean(self.before, tokens), mean(after, tokens)
        write_adapter(self.trainer.adapted, self.spec.model, self.base_digest, *means, f"{self.run.folder}/adapter")

    def _results(self, after: Sequence[Measure]) -> dict[int, Outcome]:
        both = zip(self.before, after, strict=True)
        measured = dict(zip((pair.document.seq for pair in self.held), both, strict=True))
        seconds = self._seconds()
        each = seconds / sum(len(pair.ids) - 1 for pair in self.pairs)
        return {pair.document.seq: _result(pair, measured.get(pair.document.seq), each, seconds) for pair in self.pairs}


class _Meter:
    """Tells ``run`` how far the training is, as documents: the share of its work that is done, times their number."""

    def __init__(self, run: Run, documents: int, work: int) -> None:
        self._run, self._documents, self._work = run, documents, work
        self._done = self._told = 0

    def add(self, tokens: int, weight: int) -> None:
        """So many tokens went through a pass that counts ``weight`` times."""
        self._done += tokens * weight
        self._tell(min(self._documents - 1, self._documents * self._done // self._work), tokens)

    def skip(self, work: int) -> None:
        """An earlier attempt did this much."""
        self._done += work
        self.add(0, 0)

    def finish(self) -> None:
        """All is done."""
        self._tell(self._documents, 0)

    def _tell(self, documents: int, tokens: int) -> None:
        self._run.progress(documents - self._told, tokens)
        self._told = documents


def _result(pair: Pair, measured: tuple[Measure, Measure] | None, each: float, latency: float) -> Result:
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
        "align_seconds": each * tokens,
    }
    return Result(fields, tokens, pair.answer_tokens, seconds=each * tokens, latency_seconds=latency)
