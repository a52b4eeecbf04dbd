"""Memory encoders by name: what ``contextmill icae`` trained, each for one base model and no other.

A folder holds the trained tensors, the curve of their training, and a manifest that names the base by its digest. It
lies in this machine's store, or came with contextmill, or is named by its path.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.accounting.wording import counted
from pipeline.models import placing
from pipeline.models.digest import file_sha256
from pipeline.models.folder import check_whole
from pipeline.models.ref import ModelDamaged, ModelError, ModelNotFound
from schemas.job import digest
from schemas.memory import EncoderSpec

WEIGHTS, CURVE, MANIFEST = "encoder.safetensors", "curve.parquet", placing.MANIFEST
SHIPPED = Path(str(files("pipeline.memory"))) / "encoders"
"""Where the encoders lie that come with contextmill."""
LICENCE = "Apache-2.0"
"""Theirs, as contextmill's; whoever trains another says himself what others may do with it."""

FORMAT = 3
"""Of encoders: since 2 something stands before spans and slots, since 3 they say what is typical of their slots."""

Both = tuple[float | None, float | None]
"""Before the training and after it; None: not measured."""

Four = tuple[float | None, float | None, float | None, float | None]
"""None: not measured, as where a text is too long to be read."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of ``texts`` held-out spans of ``tokens`` tokens through ``slots`` slots, one for ``ratio`` tokens: nats a token,
    the share of tokens that were the likeliest; of the ``written`` that were written out, BLEU-4 (0 to 1) and the share
    before the first wrong token."""

    texts: int
    written: int
    tokens: int
    slots: int
    ratio: float
    nats: Both
    agreement: Both
    bleu4: Both
    prefix: Both

    def told(self) -> str:
        """In a line."""
        parts = [f"{_said(self.nats[0])} -> {_said(self.nats[1])} nats a token"]
        parts += [
            f"{was:.1%} -> {now:.1%} {what}"
            for (was, now), what in ((self.agreement, "of tokens likeliest"), (self.prefix, "before the first wrong"))
            if was is not None and now is not None
        ]
        if self.bleu4[0] is not None and self.bleu4[1] is not None:
            parts.append(f"BLEU-4 {100 * self.bleu4[0]:.1f} -> {100 * self.bleu4[1]:.1f}")
        return f"{counted(self.tokens, 'token')} in {counted(self.slots, 'slot')}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Answers:
    """Of answers to ``rows`` held-out questions: nats a token, and of the ``written`` that were written out token F1
    and BLEU-4 (0 to 1).

    Four numbers each: without the context, behind all of its text, behind its slots before the training and after it.
    ``other``: nats behind the slots of another context, after the training.
    """

    rows: int
    written: int
    nats: Four
    token_f1: Four
    bleu4: Four
    other: float | None

    def told(self) -> str:
        """In a line."""
        none, text, was, now = self.nats
        yardsticks = f"without context {_said(none)}, from its text {_said(text)}, from other slots {_said(self.other)}"
        said = f"{_said(was)} -> {_said(now)} nats a token ({yardsticks})"
        none, text, was, now = self.token_f1
        return f"{said}, token F1 {_said(was)} -> {_said(now)} ({_said(none)}, {_said(text)})"


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True, slots=True)
class EncoderManifest:
    """``spec``: of the encoder (``schemas.memory.EncoderSpec``). ``sha256``: of the tensors' file. ``recipe`` says what
    made the one that got a name in the store: the same command again must not find it taken. ``answers``: what it is
    worth where it was fine-tuned. ``format``: of what the tensors are. ``written``: its revision when it was; empty in
    those made before that was kept."""

    base: str
    base_digest: str
    spec: dict[str, Any]
    steps: int
    figures: Figures
    sha256: str
    recipe: str = ""
    answers: Answers | None = None
    format: int = FORMAT
    written: str = ""

    @property
    def revision(self) -> str:
        """Of its tensors, settings and base: equal ones make equal slots, whatever the encoder is called."""
        return digest([self.sha256, self.base_digest, self.spec])

    def to_json(self) -> str:
        """As it lies in the folder."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def read_manifest(folder: Path) -> EncoderManifest:
    """Raises ``ModelDamaged`` for one that is none."""
    try:
        said = json.loads((folder / MANIFEST).read_bytes())  # not fetched, so not to be fetched again
        if said.get("format", 1) != FORMAT:
            raise ModelDamaged(f"{folder} was made by another release of contextmill; {again(folder)}")
        figures = said["figures"]
        figures.setdefault("ratio", figures["tokens"] / figures["slots"])  # older manifests do not say it
        both = _tuples(figures, "nats", "agreement", "bleu4", "prefix")
        four = _tuples(said["answers"], "nats", "token_f1", "bleu4") if said.get("answers") else None
        answers = Answers(**four) if four else None
        found = EncoderManifest(**{**said, "figures": Figures(**both), "answers": answers})
        _check_values(found)
        return found
    except ModelDamaged:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError) as error:
        raise ModelDamaged(f"{folder / MANIFEST}: not an encoder's manifest ({error}); {again(folder)}") from None


def _check_values(found: EncoderManifest) -> None:
    """``ValueError`` for what nobody who trains writes: contexts are cut, and slots told apart, by these."""
    try:
        whole = EncoderSpec.model_validate(found.spec).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"spec {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    # Its own names alone: one that was written before a setting was there has the default of it.
    if any(whole[name] != value for name, value in found.spec.items()) or found.written not in ("", found.revision):
        raise ValueError("its spec, base_digest or sha256 is not as it was written")
    figures = found.figures
    if figures.tokens < 1 or not 1 <= figures.slots <= figures.tokens or not figures.ratio >= 1:
        raise ValueError(f"spans of {figures.tokens} tokens in {figures.slots} slots, one for {figures.ratio}")
    if not all(isinstance(one, str) for one in (found.base, found.base_digest, found.sha256)):
        raise ValueError("its base or its tensors are not named")


STORE = placing.Named("encoder", lambda folder: read_manifest(folder).recipe)
store_folder, stored, check_name = STORE.folder, STORE.stored, STORE.check_name


def _tuples(said: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**said, **{name: tuple(said[name]) for name in names}}


def again(folder: Path) -> str:
    """What to do about an encoder that is damaged."""
    if comes_along(folder):
        return "install contextmill anew"
    return "make the encoder again (`contextmill icae pretrain --replace`, or `icae finetune --replace`)"


def comes_along(folder: Path) -> bool:
    """Whether it is one of ``SHIPPED``."""
    return folder.parent == SHIPPED


def named(cache: Path) -> list[Path]:
    """The folders of all that have a name: those of the store, then those that come along and whose name is not taken
    there."""
    own = stored(cache)
    taken = {folder.name for folder in own}
    return own + [path.parent for path in sorted(SHIPPED.glob(f"*/{MANIFEST}")) if path.parent.name not in taken]


def by_name(name: str, cache: Path) -> Path | None:
    """The folder of the one called ``name``, if there is one: the store's own goes first."""
    return next((folder for folder in named(cache) if folder.name == name), None)


def find(name: str, cache: Path) -> Path:
    """The folder of an encoder: a name, or a path. ``ModelNotFound`` if it is not there, ``ModelDamaged`` for tensors
    alone."""
    for folder in (by_name(name, cache), path := Path(name).expanduser()):
        if folder is not None and (folder / MANIFEST).is_file():
            return folder
    for folder in (store_folder(name, cache), path):
        if (folder / WEIGHTS).is_file():
            raise ModelDamaged(
                f"{folder}: {MANIFEST} is missing, without which tensors are no encoder; {again(folder)}"
            )
    known = ", ".join(folder.name for folder in named(cache)) or "none yet"
    raise ModelNotFound(
        f"no encoder {name!r}: name one that this machine knows ({known}) or the path of an encoder's folder; "
        "`contextmill icae pretrain` makes one"
    )


def check(folder: Path, base: str, base_digest: str, cache: Path) -> EncoderManifest:
    """The manifest, after a look whether the tensors are whole and were trained for this very base.

    Raises ``ModelDamaged``, and ``ModelError`` for another base: it would read slots that mean nothing to it.
    """
    manifest, path = read_manifest(folder), folder / WEIGHTS
    if not path.is_file():
        raise ModelDamaged(f"{folder}: {WEIGHTS} is missing; {again(folder)}")
    if file_sha256(path, cache) != manifest.sha256:
        raise ModelDamaged(f"{path} is not what was written (its sha256 differs); {again(folder)}")
    check_whole(path)
    if manifest.base_digest != base_digest:
        raise ModelError(
            f"encoder {folder.name} was made for {manifest.base} (digest {manifest.base_digest[:12]}), and {base} has "
            f"digest {base_digest[:12]}: slots are read by the very model they were trained for; name that one, or "
            f"pretrain an encoder for {base}"
        )
    return manifest


def install(source: Path, name: str, cache: Path, manifest: EncoderManifest) -> Path:
    """Copy the encoder in ``source`` into the store as ``name``, under ``manifest``, unless it is there and whole.

    Raises ``ModelError``.
    """
    folder = store_folder(name, cache)
    if not _is_there(folder, manifest, cache):
        placing.place(source, (WEIGHTS, CURVE), manifest.to_json(), folder)
    return folder


def _is_there(folder: Path, manifest: EncoderManifest, cache: Path) -> bool:
    try:
        return read_manifest(folder) == manifest == check(folder, manifest.base, manifest.base_digest, cache)
    except ModelError:
        return False
