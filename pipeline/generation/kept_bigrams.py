"""The bigrams of a target in the cache, an artifact of the answers that it gave here: later workers begin with them.

Which they are changes what is drafted, and no answer. A file is of one model by its digest; of several workers the last
that writes it is read.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.generation.earlier import Earlier
from pipeline.models import LoadedModel
from schemas.settings import Settings


@contextmanager
def earlier_answers(loaded: LoadedModel) -> Iterator[Earlier]:
    """Of this model, in this worker and in those before it; what is added meanwhile is kept."""
    known: dict[str, Earlier] = vars(loaded.model)
    earlier = known.get("contextmill_earlier")
    if earlier is None:
        earlier = known["contextmill_earlier"] = Earlier.of(loaded.model)
        _learn(earlier, _path(loaded))
    before = earlier.learned
    try:
        yield earlier
    finally:
        earlier.count()
        if earlier.learned != before:
            _keep(earlier, _path(loaded))


def _path(loaded: LoadedModel) -> Path:
    return Settings().cache / "bigrams" / f"{loaded.ref.digest}.npz"


def _learn(earlier: Earlier, path: Path) -> None:
    """Nothing from a file that is none, or of another vocabulary."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as found:
            follows, votes = found["follows"], found["votes"]
    except Exception:  # noqa: BLE001  zip, zlib and numpy have dozens for a damaged file
        return
    size = len(earlier.follows)
    fits = follows.shape == votes.shape == (size,) and follows.dtype == votes.dtype == np.int32
    if fits and votes.min() >= 0 and follows.min() >= 0 and follows.max() < size:
        earlier.learn(follows.astype(np.int64), votes.astype(np.int64))


def _keep(earlier: Earlier, path: Path) -> None:
    """Whole or not at all. A cache that cannot be written costs the next worker some drafts, nothing else."""
    tables: Any = {"follows": earlier.follows.astype(np.int32), "votes": earlier.votes.astype(np.int32)}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            with partial.open("wb") as file:
                np.savez(file, **tables)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
