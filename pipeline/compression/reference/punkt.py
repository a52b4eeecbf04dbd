"""English sentences as nltk 3.9.1 splits them with its punkt_tab data, whatever release of nltk is installed.

The data are fetched as models are (``pipeline.models.punkt``).
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.models import ModelNotFound
from pipeline.models.punkt import FILES, find
from schemas.settings import Settings

Splitter = Callable[[str], list[str]]


def load(settings: Settings | None = None) -> Splitter:
    """The splitter: text -> its sentences, white space at their ends left out.

    Raises ``ModelNotFound`` where nltk or its data are missing, with the command that gets them.
    """
    return _splitter(find((settings or Settings()).cache))


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
