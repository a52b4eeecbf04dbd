"""English sentences as nltk 3.9.1 splits them with its punkt_tab data, whatever release of nltk is installed.

The data lie in a wheel of the public index, as the default model does: ``pull`` fetches them once into the cache.

    python -m pipeline.compression.reference.punkt [--from WHEEL]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.models import ModelError, ModelNotFound
from pipeline.models.bundled import Bundled
from pipeline.models.fetch import Progress, download_wheel
from schemas.settings import Settings

_INSIDE = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"

FILES = {
    "abbrev_types.txt": "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779",
    "collocations.tab": "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf",
    "ortho_context.tab": "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c",
    "sent_starters.txt": "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac",
}
"""Name -> sha256."""

PUNKT = Bundled(
    name="punkt-english",
    package="llama-index-core",
    version="0.14.25",
    member=_INSIDE + "ortho_context.tab",
    sha256=FILES["ortho_context.tab"],
    bytes=236_303,
    licence="Apache-2.0",
    wheel_bytes=11_928_254,
)

Splitter = Callable[[str], list[str]]


def load(settings: Settings | None = None) -> Splitter:
    """The splitter: text -> its sentences, white space at their ends left out.

    Raises ``ModelNotFound`` where nltk or its data are missing, with the command that gets them.
    """
    folder = _folder(settings)
    if not all((folder / name).is_file() for name in FILES):
        raise ModelNotFound(
            "the sentence filter needs nltk's English sentence data, which are not on this machine; "
            "`python -m pipeline.compression.reference.punkt` fetches them (12 MB; --from WHEEL without an index)"
        )
    return _splitter(folder)


def pull(settings: Settings | None = None, progress: Progress | None = None, source: Path | None = None) -> Path:
    """Fetch the data into the cache, from the package index or from a wheel brought by hand; returns their folder."""
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as download:
        wheel = source or download_wheel(PUNKT, Path(download), progress)
        for name, content in _contents(wheel).items():
            part = Path(download) / name
            part.write_bytes(content)
            part.replace(folder / name)
    return folder


def _folder(settings: Settings | None) -> Path:
    return (settings or Settings()).cache / "nltk" / f"{PUNKT.name}-{PUNKT.sha256[:8]}"


def _contents(wheel: Path) -> dict[str, bytes]:
    """The files, checked. No path from the archive is ever used."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = {name: archive.read(_INSIDE + name) for name in FILES}
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel}: no wheel of {PUNKT.package} {PUNKT.version} ({error})") from None
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise ModelError(f"{wheel}: {name} is not the file that {PUNKT.name} means; take the wheel {PUNKT.version}")
    return found


@functools.lru_cache(maxsize=2)
def _splitter(folder: Path) -> Splitter:
    try:
        from nltk.tokenize import punkt
    except ImportError:
        raise ModelNotFound(
            "the sentence filter needs nltk, which is not installed; `pip install 'contextmill[reference]'` gets it"
        ) from None
    parameters = punkt.PunktParameters()
    lines = {name: (folder / name).read_text(encoding="utf-8").split("\n") for name in FILES}
    parameters.abbrev_types = set(lines["abbrev_types.txt"])
    parameters.sent_starters = set(lines["sent_starters.txt"])
    parameters.collocations = {tuple(line.split("\t")) for line in lines["collocations.tab"]}
    pairs = (line.split("\t") for line in lines["ortho_context.tab"])
    parameters.ortho_context = defaultdict(int, {word: int(flags) for word, flags in pairs})
    splitter = punkt.PunktSentenceTokenizer(lang_vars=_rules(punkt.PunktLanguageVars)())
    splitter._params = parameters  # it has no other way in: a trainer's output or pickled data are what it takes
    tokenize: Splitter = splitter.tokenize
    return tokenize


def _rules(base: Any) -> Any:
    """The rules of 3.9.1: later releases take curly quotes for closing ones, too, and stop after five seconds."""

    class Rules(base):  # type: ignore[misc]
        re_boundary_realignment = re.compile(r'["\')\]}]+?(?:\s+|(?=--)|$)', re.MULTILINE)
        _re_non_word_chars = r"(?:[)\";}\]\*:@\'\({\[\?!])"

        def _word_tokenizer_re(self) -> re.Pattern[str]:
            return words

        def period_context_re(self) -> re.Pattern[str]:
            return context

    shared = base()
    names = {"NonWord": Rules._re_non_word_chars, "MultiChar": shared._re_multi_char_punct,
             "WordStart": shared._re_word_start, "SentEndChars": shared._re_sent_end_chars}  # fmt: skip
    words = re.compile(shared._word_tokenize_fmt % names, re.UNICODE | re.VERBOSE)
    context = re.compile(shared._period_context_fmt % names, re.UNICODE | re.VERBOSE)
    return Rules


def main() -> None:
    """Fetch the data."""
    parser = argparse.ArgumentParser(description="Fetch nltk's English sentence data for the sentence filter.")
    parser.add_argument("--from", dest="source", type=Path, help=f"a wheel of {PUNKT.package} {PUNKT.version}")
    try:
        print(pull(source=parser.parse_args().source))
    except ModelError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
