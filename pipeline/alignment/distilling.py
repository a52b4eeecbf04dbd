"""The distill stage: all documents of a job, each a prompt with its target's answer -> a drafter for that target."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.alignment.stage import training_seconds
from pipeline.generation.stage import check_drafter
from pipeline.models import ModelError, check_causal, digest_of, load_tokenizer, resolve
from pipeline.models.folder import model_files
from pipeline.models.gguf import quiet
from pipeline.models.shorten import shorten
from pipeline.stages import Halt, Outcome, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import DistillSpec

if TYPE_CHECKING:
    from pipeline.alignment.pairs import Pair
    from pipeline.alignment.session import Extra, Trained
    from pipeline.models import LoadedModel

VERSION = 1
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

MODEL = "model"
"""The drafter's folder, in that of the stage."""


@dataclass(frozen=True, slots=True)
class Distill:
    """Trains a drafter of ``target`` on its answers. What it writes of one document depends on all of them."""

    spec: DistillSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Digests of the target and of the model that is begun from."""
        return [VERSION, *(digest_of(name, check=check_causal) for name in (self.target.model, self.source))]

    def check(self) -> None:
        """``ModelError`` for a drafter that knows other tokens than the target, or more layers than that has."""
        name, target = self.spec.drafter, self.target.model
        check_drafter(name or f"layers:{self.spec.layers}", target)
        if name and load_tokenizer(name).get_vocab() != load_tokenizer(target).get_vocab():
            raise ModelError(
                f"{name} cannot be taught by {target}: their vocabularies differ; name a model with the target's own "
                "tokenizer"
            )

    def work_seconds(self, characters: int) -> float:
        """Seconds that a document of this length takes over all epochs, roughly."""
        return training_seconds(self.spec, characters)

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """As ``learn``; the drafter lies in ``model`` of ``run.folder``, if there is one."""
        from pipeline.alignment.session import learn

        return learn(self, documents, run)

    def learner(self, run: Run) -> LoadedModel:
        """The drafter to be. Raises ``Halt`` for one that could not draft for the target."""
        from pipeline.generation.decoding import passes_for
        from pipeline.generation.local import misfit

        if (passes := passes_for(self._target(run))) is None:
            raise Halt(f"distill: {self.target.model} is decoded by transformers' generate, hence without drafts")
        with self._beginning() as name:
            if why := misfit(self._loaded(name, self.spec.answers.dtype, run), passes):
                raise Halt(f"distill: {why}")
            return self._loaded(name, "float32", run)

    def teacher(self, run: Run) -> LoadedModel | None:
        """The target. None where its answers alone are learned from, which spares its passes."""
        return self._target(run) if self.spec.kl_weight else None

    def pairs(self, documents: Sequence[Document], loaded: LoadedModel, each: Callable[[], None]) -> Iterator[Pair]:
        """As the target reads and writes them."""
        from pipeline.alignment.pairs import framed

        most = min(self.spec.max_tokens, loaded.window)
        return framed(documents, self.target.model, self.spec.answers, most, each)

    def tokens_afterwards(self, held: Sequence[Pair]) -> int:
        """The target answers twice."""
        return 2 * sum(len(pair.ids) for pair in held[: self.spec.measured])

    def publish(self, trained: Trained, run: Run) -> Extra:
        """The drafter, after the target has answered held-out prompts with what it was and with what it is."""
        from pipeline.alignment.drafts import answered, columns, upload, worth

        asked = [pair.document for pair in trained.held[: self.spec.measured]]
        with self._beginning() as name, tempfile.TemporaryDirectory() as made:
            self._write(trained.trainer.adapted, Path(made))
            before, after = (
                answered(self._target(run), self._loaded(one, self.spec.answers.dtype, run), asked, self, run)
                for one in (name, made)
            )
            if run.folder is not None:
                upload(Path(made), worth(trained, before, after, self), f"{run.folder}/{MODEL}")
        return columns(before, after)

    @property
    def source(self) -> str:
        """The name of the model that is begun from, if with fewer layers."""
        return self.spec.drafter or self.target.model

    @property
    def beginning(self) -> str:
        """What is begun from, in words."""
        return self.spec.beginning(self.target.model)

    @contextlib.contextmanager
    def _beginning(self) -> Iterator[str]:
        """The name of the model that is begun from; a shallow copy is gone behind the block."""
        if self.spec.drafter or not self.spec.layers:
            yield self.source
            return
        with tempfile.TemporaryDirectory() as folder:
            shorten(resolve(self.source).folder, Path(folder) / "short", self.spec.layers)
            yield f"{folder}/short"

    def _target(self, run: Run) -> LoadedModel:
        """As it answers."""
        return run.models.causal_lm(self.target.model, self.spec.answers.dtype, self.spec.device)

    def _loaded(self, name: str, dtype: str, run: Run) -> LoadedModel:
        loaded = run.models.own_copy(name, dtype, self.spec.device)
        return replace(loaded, ref=replace(loaded.ref, name=self.beginning))

    def _write(self, model: Any, folder: Path) -> None:
        """As the model that was begun from lies in its folder, its weights apart."""
        source = resolve(self.source).folder
        for name in model_files(source, weights=False):
            shutil.copyfile(source / name, folder / name)
        with quiet():
            model.save_pretrained(folder)
