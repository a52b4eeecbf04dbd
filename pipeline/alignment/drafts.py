"""What a drafter is worth to its target: prompts answered with its drafts, by the engine that answers in jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.generation.local import LocalGenerator, prompts_of
from pipeline.generation.prompts import Prompt
from pipeline.generation.tuning import DRAFTING
from pipeline.models import LoadedModel
from pipeline.models.distilled import FIGURES, Drafts, Figures
from pipeline.stages import Run
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import copy_whole, write_whole
from schemas.document import Document
from schemas.records import DRAFTED
from schemas.stage import GenerateSpec

if TYPE_CHECKING:
    from pipeline.alignment.distilling import Distill
    from pipeline.alignment.session import Extra, Trained

ROUNDS = 4
"""Tokens that the drafter proposes before the target checks them, one by one as it writes them."""

Answered = Mapping[int, Drafts]
"""By the document's ``seq``."""


def answered(
    target: LoadedModel, drafter: LoadedModel, documents: Sequence[Document], stage: Distill, run: Run
) -> Answered:
    """Answer the documents, but for those that cannot be. Raises ``Stopped``."""
    spec = drafting(stage.spec.answers, drafter.ref.name)
    asked = zip(documents, prompts_of(documents, stage.target.model, target, spec), strict=True)
    sent = [(document.seq, prompt) for document, prompt in asked if isinstance(prompt, Prompt)]
    made = LocalGenerator(target, spec, run, [drafter]).generate([prompt for _, prompt in sent])
    found = [(one.passes, one.drafts[drafter.ref.name]) for one in made]
    drafts = [Drafts(passes, mine.drafted, mine.accepted) for passes, mine in found]
    return dict(zip((seq for seq, _ in sent), drafts, strict=True))


def drafting(answers: GenerateSpec, name: str) -> GenerateSpec:
    """The same answers with this drafter alone."""
    same = answers.model_dump(exclude=set(DRAFTING))
    return GenerateSpec.model_validate({**same, "drafters": [name], "draft_rounds": [ROUNDS]})


def columns(before: Answered, after: Answered) -> Extra:
    """Those of the distill stage, null for documents that were not answered."""
    names = [f"{name}_{when}" for when in ("before", "after") for name in DRAFTED]
    found: Extra = defaultdict(lambda: dict.fromkeys(names))
    for seq in before:
        counts = [*asdict(before[seq]).values(), *asdict(after[seq]).values()]
        found[seq] = dict(zip(names, counts, strict=True))
    return found


def worth(trained: Trained, before: Answered, after: Answered, stage: Distill) -> Figures:
    """All figures of the drafter."""
    was, now = trained.means
    nats, agreement = (was.nats, now.nats), (was.agreement, now.agreement)
    sums = _sum(before), _sum(after)
    return Figures(stage.target.model, stage.beginning, len(trained.held), nats, agreement, ROUNDS, len(after), *sums)


def _sum(drafts: Answered) -> Drafts:
    every = drafts.values()
    return Drafts(
        sum(one.target_passes for one in every),
        sum(one.tokens_drafted for one in every),
        sum(one.tokens_accepted for one in every),
    )


def upload(model: Path, figures: Figures, folder: str) -> None:
    """The files of a model, then its figures, into ``folder`` (local or s3)."""
    fs, root = resolve_path(folder)
    for path in sorted(model.iterdir()):
        copy_whole(fs, f"{root}/{path.name}", path)
    write_whole(fs, f"{root}/{FIGURES}", figures.to_json().encode())
