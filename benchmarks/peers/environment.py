"""The environment of the llmlingua peer: its pinned packages and data in a folder of their own.

    python -m benchmarks.peers.environment                          # into the cache; prints the folder
    python -m benchmarks.peers.environment --pack FOLDER --python 3.12
    python -m benchmarks.peers.environment --into PEER --wheels FOLDER   # elsewhere, without a network

The packages are laid over a Python that has torch and numpy (ours): ``PYTHONPATH`` puts them first, in the peer's
process alone. ``--pack`` collects what another machine needs: wheels for its Python, and the data. Two large wheels
carry the data (the tokenizer cl100k, nltk's English sentences); they are unzipped, never installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "llmlingua" / "requirements.txt"
RUNNER = Path(__file__).parent / "llmlingua" / "run.py"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux2010_x86_64")
CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
PUNKT = "tokenizers/punkt_tab/english"


@dataclass(frozen=True, slots=True)
class Member:
    """A data file, and the member of a package's wheel that it is."""

    path: str
    package: str
    member: str
    sha256: str


def _punkt(name: str, sha256: str) -> Member:
    root = "llama_index/core/_static/nltk_cache"
    return Member(f"nltk/{PUNKT}/{name}", "llama-index-core==0.14.25", f"{root}/{PUNKT}/{name}", sha256)


DATA = (
    Member(
        f"tiktoken/{CL100K}", "litellm==1.109.1", f"litellm/litellm_core_utils/tokenizers/{CL100K}",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    _punkt("abbrev_types.txt", "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779"),
    _punkt("collocations.tab", "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf"),
    _punkt("ortho_context.tab", "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c"),
    _punkt("sent_starters.txt", "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder with ``site`` (packages), ``tiktoken`` and ``nltk`` (data)."""

    folder: Path

    @property
    def ready(self) -> bool:
        """Whether the folder holds all that the present requirements ask for."""
        stamp = self.folder / "stamp"
        return stamp.is_file() and stamp.read_text() == _stamp()

    def variables(self) -> dict[str, str]:
        """The environment variables of the peer's process."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.folder / "site"),
            "TIKTOKEN_CACHE_DIR": str(self.folder / "tiktoken"),
            "NLTK_DATA": str(self.folder / "nltk"),
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "USE_TORCH": "1", "USE_TF": "0", "USE_FLAX": "0",
            "PYTHONWARNINGS": "ignore::FutureWarning",
        }  # fmt: skip

    def command(self, *arguments: str) -> list[str]:
        """The command that runs the peer. ``-P``: the script's own folder must not be searched for packages."""
        return [sys.executable, "-P", str(RUNNER), *arguments]


def build(into: Path | None = None, wheels: Path | None = None) -> Environment:
    """The environment in ``into`` (default: the cache), made if it is not there; from ``wheels`` without a network.

    Raises ``RuntimeError`` with pip's words where a package cannot be had, and for data that is not what it should be.
    """
    made = Environment((into or _cached()).resolve())
    if made.ready:
        return made
    partial = made.folder.with_name(f".partial-{made.folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    _pip("install", "--no-compile", "--target", str(partial / "site"), *_source(wheels), "-r", str(REQUIREMENTS))
    _data(partial, wheels)
    (partial / "stamp").write_text(_stamp())
    shutil.rmtree(made.folder, ignore_errors=True)
    partial.rename(made.folder)
    return made


def pack(folder: Path, python: str) -> dict[str, int]:
    """Fill ``folder`` with the wheels for Python ``python`` on Linux x86-64 and the data; bytes by file name."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    wanted = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python, *platforms]
    _pip("download", "--dest", str(folder), *wanted, "-r", str(REQUIREMENTS))
    _data(folder, None)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _cached() -> Path:
    from schemas.settings import Settings  # not needed where a folder is named: a bare Python can build there

    return Settings().cache / "peers" / f"llmlingua-{_stamp()}"


def _data(folder: Path, packed: Path | None) -> None:
    for package in dict.fromkeys(one.package for one in DATA):
        members = [one for one in DATA if one.package == package]
        if packed and all((packed / one.path).is_file() for one in members):
            found = {one.path: (packed / one.path).read_bytes() for one in members}
        else:
            found = _unzipped(package, members, packed)
        for one in members:
            _place(folder / one.path, found[one.path], one)


def _unzipped(package: str, members: list[Member], wheels: Path | None) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as temporary:
        _pip("download", "--only-binary", ":all:", "--dest", temporary, *_source(wheels), package)
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
            return {one.path: wheel.read(one.member) for one in members}


def _place(path: Path, content: bytes, member: Member) -> None:
    if hashlib.sha256(content).hexdigest() != member.sha256:
        raise RuntimeError(f"{member.path}: not the file that {member.package} holds (its sha256 differs); delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _source(wheels: Path | None) -> list[str]:
    return ["--no-index", "--find-links", str(wheels)] if wheels else []


def _pip(verb: str, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"pip {verb} failed: {done.stderr.strip()[-800:]}\nWithout an index: make a folder with --pack on a "
            "machine that has one, and give it as --wheels"
        )


def _stamp() -> str:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{python}-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="default: the cache")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="what --pack made; no network is used then")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="collect wheels and data for another machine")
    parser.add_argument("--python", default="3.12", help="Python of that machine")
    arguments = parser.parse_args()
    if not arguments.pack:
        print(build(arguments.into, arguments.wheels).folder)
        return
    sizes = pack(arguments.pack, arguments.python)
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:8.2f} MiB  in all")


if __name__ == "__main__":
    main()
