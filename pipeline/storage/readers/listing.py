"""Which files a corpus is made of, in order, and which of a folder's files are none of it."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from pipeline.accounting.wording import counted
from pipeline.storage.filesystem import PathError, is_local, resolve_path
from pipeline.storage.readers.base import BadRow, Compression, Format, InputError, InputFile
from pipeline.storage.readers.decompress import reason_of
from schemas.job import InputSpec

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".md": "text", ".markdown": "text",
}  # fmt: skip
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
MARKERS = {"_SUCCESS", "_metadata", "_common_metadata"}
"""Files that writers of Parquet folders leave beside the data."""
IRREGULAR, OUTSIDE = -1, -2
"""In place of a size: a pipe, a broken link or a link to a folder; a link that leads out of the folder."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a corpus in reading order, and one bad row per named folder of which files were left out."""

    files: list[InputFile]
    skipped: list[BadRow]


def list_corpus(spec: InputSpec) -> Listing:
    """Everything under ``spec.path``, each file once. Raises ``InputError`` where there is nothing to read."""
    files: dict[tuple[str, str], InputFile] = {}
    skipped: list[BadRow] = []
    for named in dict.fromkeys(spec.path):
        try:
            found, left = _Named(named, spec.format).files()
        except PathError as error:
            # Without the path: it may be one that carries a password.
            raise InputError(f"path {spec.path.index(named) + 1} of the input cannot be read: {error}") from None
        except OSError as error:
            below = f" ({error.filename})" if error.filename else ""
            raise InputError(f"input {named} cannot be read: {reason_of(error)}{below}") from error
        for file in found:
            files.setdefault((file.fs.type_name, file.path), file)
        if left:
            skipped.append(_skipped(named, left))
    return Listing(list(files.values()), skipped)


def check_unchanged(file: InputFile) -> None:
    """Raise ``InputError`` unless the file is as it was when it was listed: rows of two states would stand mixed."""
    try:
        info = file.fs.get_file_info(file.path)
    except OSError as error:
        raise InputError(f"{file.name} cannot be read: {reason_of(error)}") from error
    # S3 servers list milliseconds, but answer in seconds about a single object.
    step = 1 if is_local(file.fs) else 10**9
    if (info.size, (info.mtime_ns or 0) // step) != (file.bytes, file.modified // step):
        raise InputError(f"{file.name} was changed while it was read: run this again once nothing writes to it")


def kind_of(name: str) -> tuple[Format | None, Compression | None]:
    """Format and compression by a file's name: the ending before ``.gz`` or ``.zst`` counts."""
    stem, ending = os.path.splitext(name.lower())  # noqa: PTH122 - also for names in a bucket
    compression = COMPRESSIONS.get(ending)
    if compression:
        ending = os.path.splitext(stem)[1]  # noqa: PTH122
    return FORMATS.get(ending), compression


def _skipped(named: str, left: list[tuple[str, str]]) -> BadRow:
    first = "; ".join(f"{name} ({why})" for name, why in left[:10])
    more = f"; and {len(left) - 10} more" if len(left) > 10 else ""
    return BadRow(named, "skipped_files", f"{counted(len(left), 'file')} not read: {first}{more}")


class _Named:
    """One path of the job file: a file, a folder, or a pattern of local files."""

    def __init__(self, named: str, asked: str) -> None:
        self.named, self.asked = named, asked
        self.fs, self.path = resolve_path(named)
        self.left: list[tuple[str, str]] = []

    def files(self) -> tuple[list[InputFile], list[tuple[str, str]]]:
        """The files to read, sorted by name, and (name, why) of those that are not."""
        info = self.fs.get_file_info(self.path)
        if info.type == fs.FileType.File:
            return [self._single(info)], []
        if info.type == fs.FileType.Directory:
            found = list(self._folder())
        elif is_local(self.fs) and glob.has_magic(self.path) and info.type == fs.FileType.NotFound:
            found = list(self._pattern())
        else:
            what = "does not exist" if info.type == fs.FileType.NotFound else "is no regular file or folder"
            raise InputError(f"input {self.named} {what}{self._hint()}")
        if not found:
            raise InputError(f"input {self.named} holds no file to read{self._why()}; {_known()}")
        return sorted(found, key=lambda file: file.key), sorted(set(self.left))

    def _hint(self) -> str:
        if not is_local(self.fs):
            return "; patterns work on local paths only" if glob.has_magic(self.path) else ""
        whole = "://" in self.named or Path(self.named).expanduser().is_absolute()
        begins = "" if whole else f"; relative paths begin at {Path.cwd()}"
        return f": name a file or folder that is there{begins}"

    def _why(self) -> str:
        return f" (not read: {', '.join(f'{name}: {why}' for name, why in self.left[:5])})" if self.left else ""

    def _single(self, info: Any) -> InputFile:
        base = self.path.rpartition("/")[2]
        by_name, compression = kind_of(base)
        chosen = by_name if self.asked == "auto" else self.asked
        if chosen is None:
            raise InputError(f"input {self.named}: its name does not tell its format; set input.format. {_known()}")
        return InputFile(self.fs, self.path, self.named, base, chosen, compression, info.size, info.mtime_ns)  # type: ignore[arg-type]

    def _folder(self) -> Iterator[InputFile]:
        if is_local(self.fs):
            entries = _walk(Path(self.path))
        else:
            infos = self.fs.get_file_info(fs.FileSelector(self.path, recursive=True))
            entries = ((i.path, i.path[len(self.path) :].strip("/"), (i.size, i.mtime_ns)) for i in infos if i.is_file)
        for path, key, state in entries:
            yield from self._entry(path, key, state, f"{self.named.rstrip('/')}/{key}")

    def _pattern(self) -> Iterator[InputFile]:
        parts = Path(self.path).parts
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
        real = os.path.realpath(base)
        for match in _matches(base, parts[len(base.parts) :]):
            if not match.is_dir():
                shown = str(match) if Path(self.named).is_absolute() else os.path.relpath(match)
                yield from self._entry(str(match), str(match.relative_to(base)), _state(match, real), shown)

    def _entry(self, path: str, key: str, state: tuple[int, int], name: str) -> Iterator[InputFile]:
        steps = key.split("/")
        if steps[-1] in MARKERS or any(step.startswith(".") for step in steps):
            return
        by_name, compression = kind_of(steps[-1])
        chosen = by_name if self.asked == "auto" else self.asked
        why = self._refusal(path, steps, state[0], by_name)
        if why is None and chosen is not None:
            yield InputFile(self.fs, path, name, key, chosen, compression, *state)  # type: ignore[arg-type]
        else:
            self.left.append((key.encode(errors="backslashreplace").decode(), why or "unknown ending"))

    def _refusal(self, path: str, steps: list[str], size: int, by_name: Format | None) -> str | None:
        if any(step.startswith("_") for step in steps[:-1]):
            return "in a folder whose name begins with _"
        try:
            path.encode()
        except UnicodeEncodeError:
            return "its name is not UTF-8"
        if size < 0:
            return "a link that leaves the folder" if size == OUTSIDE else "no regular file"
        if self.asked not in ("auto", by_name) and by_name is not None:
            return f"{by_name}, not {self.asked}"
        return None


def _walk(folder: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """(path, path below ``folder``, ``_state``) of all files and links."""
    real = os.path.realpath(folder)
    for here, folders, names in _folders(folder):
        below = here[len(str(folder)) :].strip("/")
        for name in names + [name for name in folders if Path(here, name).is_symlink()]:
            path = Path(here, name)
            # Only the last step can be a link, and looking at all of them takes its time.
            yield str(path), f"{below}/{name}".strip("/"), _state(path, real if path.is_symlink() else None)


def _folders(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk``, which follows no links, without hidden folders. Raises ``OSError`` for one that cannot be read."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would leave an unreadable folder out in silence

    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield here, folders, names


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What a pattern, given in its parts, finds below a folder.

    ``glob.glob`` would leave out in silence what it may not read, and let ``**`` follow links: two that lead in a
    circle keep it busy for ever.
    """
    if not parts:
        yield folder
    elif not folder.is_dir():
        return
    elif parts[0] == "**":
        rest = list(itertools.dropwhile("**".__eq__, parts)) or ["*"]
        for here, _, _ in _folders(folder):
            yield from _matches(Path(here), rest)
    elif glob.has_magic(parts[0]):
        for found in folder.iterdir():
            hidden = found.name.startswith(".") and not parts[0].startswith(".")
            if not hidden and fnmatch.fnmatchcase(found.name, parts[0]):
                yield from _matches(found, parts[1:])
    elif os.path.lexists(folder / parts[0]):
        yield from _matches(folder / parts[0], parts[1:])


def _state(path: Path, real: str | None) -> tuple[int, int]:
    """Bytes and time of change of a file; ``IRREGULAR``, or ``OUTSIDE`` where links lead out of the folder ``real``."""
    if real is not None and not Path(os.path.realpath(path)).is_relative_to(real):
        return OUTSIDE, 0
    try:
        info = path.stat()
    except OSError:  # a link to nowhere, or to itself
        return IRREGULAR, 0
    return (info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (IRREGULAR, 0)


def _known() -> str:
    return f"known endings: {' '.join(FORMATS)}, each also with .gz or .zst"
