"""Distilled drafters by name: whole models in the store, each with what it was made from and what it is worth.

``contextmill distill`` makes them. Such a name is one word, and goes before a folder of that name.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.models import placing, store
from pipeline.models.bundled import BUNDLED
from pipeline.models.digest import file_sha256
from pipeline.models.folder import read_json
from pipeline.models.ref import ModelDamaged, ModelError

FIGURES = "distilled.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,55}")


@dataclass(frozen=True, slots=True)
class Drafts:
    """What the target made of a drafter's proposals while it answered prompts."""

    target_passes: int
    tokens_drafted: int
    tokens_accepted: int

    @property
    def accepted(self) -> float | None:
        """The share of drafts; None where there were none."""
        return self.tokens_accepted / self.tokens_drafted if self.tokens_drafted else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Of the target, which adds one of its own to those it accepts; None where nothing was answered."""
        return 1 + self.tokens_accepted / self.target_passes if self.target_passes else None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a drafter on held-out prompts, before and after: nats a token and the share of likeliest tokens over all
    answers there were (``answers``), and what came of drafts when the target answered some anew (``answered``)."""

    target: str
    begun_from: str
    answers: int
    nats: tuple[float, float]
    agreement: tuple[float, float]
    rounds: int
    answered: int
    before: Drafts
    after: Drafts

    @property
    def better(self) -> bool:
        """Whether more of its drafts pass; where that is not known, whether it says what the target says sooner."""
        was, now = self.before, self.after
        if was.tokens_per_pass is None or now.tokens_per_pass is None:
            return self.nats[1] < self.nats[0] or self.agreement[1] > self.agreement[0]
        return now.tokens_per_pass > was.tokens_per_pass

    @property
    def gain(self) -> str:
        """Of drafts, in words."""
        was, now = self.before, self.after
        if was.accepted is None or now.accepted is None:
            return "no held-out prompt was answered with its drafts"
        passes = f"{was.tokens_per_pass:.2f} -> {now.tokens_per_pass:.2f} tokens a pass"
        return f"{was.accepted:.1%} -> {now.accepted:.1%} of its drafts accepted, {passes}"

    def to_json(self) -> str:
        """As it lies in the folder."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def read_figures(folder: Path) -> Figures:
    """Raises ``ModelDamaged`` where there are none."""
    try:
        said = read_json(folder / FIGURES)
        drafts = {when: Drafts(**said[when]) for when in ("before", "after")}
        return Figures(**{**said, **drafts, "nats": tuple(said["nats"]), "agreement": tuple(said["agreement"])})
    except (OSError, TypeError, LookupError) as error:
        raise ModelDamaged(f"{folder / FIGURES}: no figures of a drafter ({error}); distill it again") from None


def _recipe_of(folder: Path) -> str | None:
    manifest = store.read_manifest(folder)
    return manifest.source if manifest else None


STORE = placing.Named("drafter", _recipe_of)
store_folder, stored = STORE.folder, STORE.stored


def find(name: str, cache: Path) -> Path | None:
    """The folder of the drafter called ``name``, if there is one. Raises ``ModelDamaged``."""
    folder = store_folder(name, cache)
    manifest = store.read_manifest(folder) if NAME.fullmatch(name) else None
    if manifest and (found := store.damage(folder, manifest, partial(file_sha256, cache=cache))):
        raise ModelDamaged(f"{folder}: {found}; make the drafter again (`contextmill distill --replace`)")
    return folder if manifest else None


def check_word(name: str) -> None:
    """Raise ``ModelError`` unless a drafter may be called ``name``."""
    if not NAME.fullmatch(name) or name in BUNDLED or Path(name).exists():
        raise ModelError(
            f"a drafter cannot be called {name!r}: a name has at most 56 letters, digits, dots, dashes and "
            "underscores, and is neither a bundled model's nor that of a file or folder here"
        )


def check_name(name: str, cache: Path, recipe: str, *, replace: bool) -> None:
    """Raise ``ModelError`` unless a drafter made by ``recipe`` may be called ``name``, which no other is."""
    check_word(name)
    STORE.check_name(name, cache, recipe, replace=replace)


def install(source: Path, name: str, cache: Path, recipe: str) -> Path:
    """Copy the model in ``source`` into the store as ``name``; it appears whole or not at all. The same ``recipe`` has
    made the same model. Raises ``ModelError``."""
    folder = store_folder(name, cache)

    def make(partial_folder: Path) -> tuple[str, str, str]:
        shutil.copytree(source, partial_folder, dirs_exist_ok=True)
        return name, recipe, ""

    def ready() -> bool:
        there = store.read_manifest(folder)
        return bool(there and there.source == recipe and not store.damage(folder, there))

    store.publish(folder, cache, make, ready)
    return folder
