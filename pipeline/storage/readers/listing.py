"""Which files a corpus is made of, in order, and which of a folder's files are none of it."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

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
            raise InputError(f"input {named} cannot be read: {reason_of(error)}") from error
        for file in found:
            files.setdefault((file.fs.type_name, file.path), file)
        if left:
            skipped.append(_skipped(named, left))
    return Listing(list(files.values()), skipped)


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
    return BadRow(named, "skipped_files", f"{len(left)} files were not read: {first}{more}")


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
            hint = "; patterns work on local paths only" if not is_local(self.fs) and glob.has_magic(self.path) else ""
            raise InputError(f"input {self.named} {what}{hint}")
        if not found:
            raise InputError(f"input {self.named} holds no file to read{self._why()}; {_known()}")
        return sorted(found, key=lambda file: file.key), sorted(self.left)

    def _why(self) -> str:
        return f" (not read: {', '.join(f'{name}: {why}' for name, why in self.left[:5])})" if self.left else ""

    def _single(self, info: Any) -> InputFile:
        base = self.path.rpartition("/")[2]
        by_name, compression = kind_of(base)
        chosen = by_name if self.asked == "auto" else self.asked
        if chosen is None:
            raise InputError(f"input {self.named}: its name does not tell its format; set input.format. {_known()}")
        return InputFile(self.fs, self.path, self.named, base, chosen, compression, info.size)  # type: ignore[arg-type]

    def _folder(self) -> Iterator[InputFile]:
        if is_local(self.fs):
            entries = _walk(Path(self.path))
        else:
            infos = self.fs.get_file_info(fs.FileSelector(self.path, recursive=True))
            entries = ((i.path, i.path[len(self.path) :].strip("/"), i.size) for i in infos if i.is_file)
        for path, key, size in entries:
            yield from self._entry(path, key, size, f"{self.named.rstrip('/')}/{key}")

    def _pattern(self) -> Iterator[InputFile]:
        base = Path(*_before_magic(Path(self.path).parts))
        real = base.resolve()
        for match in sorted(glob.glob(self.path, recursive=True)):  # noqa: PTH207 - pathlib's takes no absolute pattern
            if not Path(match).is_dir():
                key = os.path.relpath(match, base)
                shown = match if Path(self.named).is_absolute() else os.path.relpath(match)
                inside = Path(match).resolve().is_relative_to(real)  # any step of the way may be a link
                yield from self._entry(match, key, _size(Path(match), None) if inside else OUTSIDE, shown)

    def _entry(self, path: str, key: str, size: int, name: str) -> Iterator[InputFile]:
        steps = key.split("/")
        if steps[-1] in MARKERS or any(step.startswith(".") for step in steps):
            return
        by_name, compression = kind_of(steps[-1])
        chosen = by_name if self.asked == "auto" else self.asked
        why = self._refusal(path, steps, size, by_name)
        if why is None and chosen is not None:
            yield InputFile(self.fs, path, name, key, chosen, compression, size)  # type: ignore[arg-type]
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


def _walk(folder: Path) -> Iterator[tuple[str, str, int]]:
    """(path, path below ``folder``, size) of all files and links; the size is ``IRREGULAR`` or ``OUTSIDE`` if none."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would leave an unreadable folder out in silence

    base = folder.resolve()
    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = here[len(str(folder)) :].strip("/")
        for name in names + [name for name in folders if Path(here, name).is_symlink()]:
            # Only the last step can be a link, as os.walk follows none.
            yield f"{here}/{name}", f"{below}/{name}".strip("/"), _size(Path(here, name), base)


def _size(path: Path, base: Path | None) -> int:
    """Bytes of a file, unless it is none or (with ``base``) a link out of there."""
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode) and base is not None and not path.resolve().is_relative_to(base):
        return OUTSIDE
    if stat.S_ISLNK(info.st_mode):
        return path.stat().st_size if path.is_file() else IRREGULAR
    return info.st_size if stat.S_ISREG(info.st_mode) else IRREGULAR


def _before_magic(parts: tuple[str, ...]) -> tuple[str, ...]:
    clean = 0
    while clean < len(parts) and not glob.has_magic(parts[clean]):
        clean += 1
    return parts[:clean]


def _known() -> str:
    return f"known endings: {' '.join(FORMATS)}, each also with .gz or .zst"
