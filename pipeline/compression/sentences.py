"""Where sentences and phrases begin, by rule: no model, any script, one pass over the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "rev",
        "hon",
        "st",
        "sr",
        "jr",
        "gen",
        "col",
        "capt",
        "lt",
        "sgt",
        "sen",
        "rep",
        "gov",
        "pres",
        "messrs",
        "mme",
        "mlle",
        "fr",
        "vs",
        "etc",
        "cf",
        "al",
        "approx",
        "dept",
        "est",
        "fig",
        "figs",
        "eq",
        "eqs",
        "sec",
        "ch",
        "vol",
        "no",
        "nos",
        "pp",
        "p",
        "ed",
        "eds",
        "ca",
        "viz",
        "inc",
        "ltd",
        "co",
        "corp",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
    ]
)
"""Words whose full stop seldom ends a sentence. Those that are words by themselves are only taken before a capital or a
number where that is how they are used ("No. 5")."""

_WORDS_TOO = frozenset(["no", "mar", "sat", "sun", "fig", "ed", "st", "sec", "co", "al", "fr", "est", "p", "ch"])

CONJUNCTIONS = [
    "and",
    "or",
    "but",
    "nor",
    "so",
    "yet",
    "because",
    "although",
    "though",
    "while",
    "whereas",
    "if",
    "unless",
    "until",
    "when",
    "where",
    "which",
    "who",
    "whom",
    "whose",
    "that",
    "since",
    "than",
    "as",
    "after",
    "before",
    "however",
    "therefore",
    "then",
    "with",
    "without",
    "between",
    "through",
    "during",
    "against",
    "about",
    "into",
    "from",
]
"""English words before which a phrase begins."""

_CONJUNCTION = re.compile(rf"(?<!\w)(?:{'|'.join(CONJUNCTIONS)})(?!\w)", re.IGNORECASE)

_CLOSERS = "\"'”’»)\\]}*_"
_END = re.compile(
    rf"(?P<stop>(?<![.!?…])[.!?…]++[{_CLOSERS}]*+(?=\s|\Z))"  # before white space
    r"|(?P<wide>[。！？｡؟۔।॥]++[”’」』）】》\"')]*+)"  # anywhere
    r"|(?P<lines>(?<!\s)\s*\n\s*)"
)
_LAST_WORD = re.compile(r"[^\s\"'“‘«(\[{]*+\Z")


def sentence_ends(text: str) -> Iterator[int]:
    """Places after which another sentence begins (with the white space before it), ascending; one may come twice.

    A sentence ends after . ! ? … before white space, unless an abbreviation, an initial or a list's number stands
    before the stop, or a small letter follows; after the full stops of Chinese, Japanese, Arabic and Indian scripts;
    at a blank line; and at a line break, unless the line before it seems to go on (prose wrapped to a width).
    """
    for found in _END.finditer(text):
        if found.lastgroup == "wide" or (found.lastgroup == "stop" and _stops(text, found)):
            yield found.end()
        elif found.lastgroup == "lines" and _breaks(text, found):
            yield found.start()


def conjunctions(text: str) -> Iterator[int]:
    """Where words begin before which a phrase does."""
    return (found.start() for found in _CONJUNCTION.finditer(text))


_PHRASE = re.compile(r"(?<=[,;:.!?…)\]}»”，、。；：！？）」』】،؛؟।])(?=\s)|\n|(?<=[，、。；：！？])|(?=[(\[{«“])")


def phrase_starts(text: str) -> Iterator[int]:
    """Where phrases begin, roughly: after closing punctuation and line breaks, before brackets and conjunctions."""
    yield from (found.end() for found in _PHRASE.finditer(text))
    yield from conjunctions(text)


def _stops(text: str, found: re.Match[str]) -> bool:
    after = _solid_after(text, found.end())
    if after.islower():
        return False
    if not found[0].startswith(".") or found[0].startswith(".."):
        return True
    before = _LAST_WORD.search(text, max(0, found.start() - 16), found.start())
    word = before[0] if before else ""
    if word.isdigit() and len(word) < 4:
        return not _heads_line(text, found.start() - len(word))
    if "." in word or (len(word) == 1 and word.isalpha() and word != "I"):
        return not after.isalnum()  # U.S. Army, J. Smith
    if word.lower() in ABBREVIATIONS:
        return word.lower() in _WORDS_TOO and word.islower() and not after.isdigit()
    return True


def _breaks(text: str, found: re.Match[str]) -> bool:
    if found[0].count("\n") > 1:
        return True
    before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    return not (before == "," or (before.isalnum() and after.islower()))


def _solid_after(text: str, at: int) -> str:
    """The first character after white space, quotes and brackets; nothing at a blank line."""
    for char in text[at : at + 8]:
        if not char.isspace() and char not in "\"'“‘«([{":
            return char
    return ""


def _heads_line(text: str, at: int) -> bool:
    start = max(0, at - 16)
    line = text.rfind("\n", start, at) + 1
    return (line > 0 or start == 0) and not text[line:at].strip()
