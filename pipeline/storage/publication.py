"""``<root>/data/``: exactly the committed parts of the last stage, in order, for anybody's Parquet reader."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.fs as pafs

from pipeline.storage.disk import sync
from pipeline.storage.filesystem import is_local

SUCCESS = "_SUCCESS"
BUILDING, REPLACED = ".data-", ".replaced-"


def publish(
    fs: pafs.FileSystem,
    root: str,
    part_paths: Sequence[str],
    attempt: int,
    go_on: Callable[[], None] = lambda: None,
) -> None:
    """Make ``<root>/data/`` hold exactly these parts as ``part-00000.parquet`` and so on.

    On a disk the folder is built aside and renamed, so that a reader sees all parts or none. On s3, which knows no
    rename, ``data/_SUCCESS`` comes last. Doing it again changes nothing; what an interrupted publication left is
    replaced. ``attempt`` tells what an earlier try left from what a later one builds. Raises ``OSError``, and what
    ``go_on`` raises, which is called before each file that is compared, linked or copied.
    """
    width = max(5, len(str(len(part_paths))))
    names = {f"part-{index:0{width}}.parquet": path for index, path in enumerate(part_paths)}
    if is_local(fs):
        _publish_folder(Path(root), {name: Path(path) for name, path in names.items()}, attempt, go_on)
    else:
        _publish_objects(fs, f"{root}/data", names, go_on)


def is_published(fs: pafs.FileSystem, root: str, number: int) -> bool:
    """Whether ``data/`` holds the ``number`` of files that were published there, and on s3 the mark that all are."""
    there = fs.get_file_info(pafs.FileSelector(f"{root}/data", allow_not_found=True))
    names = {info.base_name for info in there if info.is_file}
    return (is_local(fs) or SUCCESS in names) and len(names - {SUCCESS}) >= number


def _publish_folder(root: Path, names: dict[str, Path], attempt: int, go_on: Callable[[], None]) -> None:
    data = root / "data"
    _sweep(root, attempt)
    if _same(data, names, go_on):
        return
    building = root / f"{BUILDING}{attempt}-{uuid.uuid4().hex}"
    try:
        building.mkdir(parents=True)
        for name, path in names.items():
            go_on()
            _link(path, building / name)
        sync(building)
        _put_in_place(building, data, names, go_on)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sync(root)
    _sweep(root, attempt)


def _put_in_place(building: Path, data: Path, names: dict[str, Path], go_on: Callable[[], None]) -> None:
    while True:
        try:
            building.rename(data)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A data/ is there: an older one, or that of a worker whose attempt was given up but which still goes on.
        if _same(data, names, go_on):
            return
        with contextlib.suppress(FileNotFoundError):
            data.rename(data.with_name(f"{REPLACED}{uuid.uuid4().hex}"))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another device, or a file system without hard links
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _same(data: Path, names: dict[str, Path], go_on: Callable[[], None]) -> bool:
    try:
        if not data.is_dir() or {path.name for path in data.iterdir()} != set(names):
            return False
        for name, path in names.items():
            go_on()  # a copy is compared byte by byte
            if not _same_file(data / name, path):
                return False
        return True
    except FileNotFoundError:  # another publisher is just replacing it; or a part is gone, which linking will tell
        return False


def _same_file(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def _sweep(root: Path, attempt: int) -> None:
    """Remove what earlier attempts left. A folder that this or a later attempt builds is not ours to remove."""
    if not root.is_dir():
        return
    for path in root.iterdir():
        built_by = path.name.removeprefix(BUILDING).partition("-")[0]
        old = path.name.startswith(BUILDING) and built_by.isdigit() and int(built_by) < attempt
        if old or path.name.startswith(REPLACED):
            shutil.rmtree(path, ignore_errors=True)


def _publish_objects(fs: pafs.FileSystem, data: str, names: dict[str, str], go_on: Callable[[], None]) -> None:
    manifest = json.dumps({name: path.rpartition("/")[2] for name, path in names.items()}, indent=1).encode()
    marker = f"{data}/{SUCCESS}"
    there = {info.base_name for info in fs.get_file_info(pafs.FileSelector(data, allow_not_found=True)) if info.is_file}
    if there == {*names, SUCCESS} and _read(fs, marker) == manifest:
        return
    for name in sorted(there - set(names)):  # the marker first of all: "_" sorts before "part-"
        fs.delete_file(f"{data}/{name}")
    for name, path in names.items():
        go_on()
        fs.copy_file(path, f"{data}/{name}")
    with fs.open_output_stream(marker, compression=None) as out:
        out.write(manifest)


def _read(fs: pafs.FileSystem, path: str) -> bytes:
    with fs.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())
