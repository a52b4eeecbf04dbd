"""What a model's text says the answer is, read as the field reads it for each task.

None of this sees whether the answer is right: of a reference only its kind (a letter, a number, a word) is looked at.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence

from pipeline.evaluation.conclusions import SHORTEST, Conclusions, Span, places, within

_DECORATION = str.maketrans({"−": "-", "*": " ", **dict.fromkeys("$€£¥`", None)})
_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_DIGIT = re.compile(r"\d")
_NEXT_QUESTION = re.compile(
    r"(?:^|\n)[ \t*#>]*(?:(?i:question|q|problem)(?:[ \t]*[#(]?\d{1,3}[.)]?)?[ \t*]*:|(?:Question|Q)[ \t]+(?=[A-Z]))"
)
_LABEL = re.compile(
    r"(?:(?:so|thus|therefore),?\s+)?(?:the\s+)?(?:final\s+)?answer(?:\s+is\b\s*:?|\s*:)\s*|a:\s*", re.IGNORECASE
)
_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)(.*)$", re.MULTILINE)
_LETTER = re.compile(r"\([A-Z]\)")
_FIRST = re.compile(r"(?:[Oo]ption\s+)?([A-Z])(?:[).:,]|\s*$)")


def references(answer: str) -> list[str]:
    """The reference answers in an ``answer`` column: a JSON list of texts is several, anything else is one."""
    if answer.lstrip().startswith("["):
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return [answer]
        if found and isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    return [answer]


def number(text: str) -> str | None:
    """The number that a worked solution ends in (GSM8K), as plain digits: ``$1,200.50`` is ``1200.5``.

    The one after the first "answer is", as Chain-of-Thought Hub reads it, else after the last "answer:", "####" or
    "\\boxed{" (behind the last "=", where that sentence has one); where there is none, the last number. What a model
    writes after its answer, such as a question to itself and the answer to that, does not count: behind compressed
    prompts models do so in their style, without "Question:" or a blank line.
    """
    plain = _plain(text.replace("{,}", ",").replace("\\,", "").replace("\\$", ""))
    for piece in _NEXT_QUESTION.split(plain):
        numbers = _NUMBER.findall(piece)
        if numbers:
            return _canonical(_marked_number(piece) or numbers[-1])
    return None


def _marked_number(text: str) -> str | None:
    digits = places(_DIGIT, text)
    for span in Conclusions(text):
        if within(digits, span) > 0:
            said = text[slice(*span)]
            found = _NUMBER.search(said.rpartition("=")[2]) or _NUMBER.search(said)
            return found[0] if found else None
    return None


def _plain(text: str) -> str:
    return re.sub(r"(?<!\d)\*\*|\*\*(?!\d)", "", text).translate(_DECORATION)


def _canonical(digits: str) -> str:
    digits = "".join(str(int(sign)) if sign.isdecimal() else sign for sign in digits)  # of any script
    whole, _, fraction = digits.replace(",", "").replace(" ", "").partition(".")
    sign = "-" if whole.startswith("-") else ""
    whole, fraction = whole.lstrip("-").lstrip("0") or "0", fraction.rstrip("0")
    value = whole + (f".{fraction}" if fraction else "")
    return value if value == "0" else sign + value


def choice(text: str, question: str, reference: str) -> str | None:
    """The answer to a BIG-Bench-Hard question, in the form of ``reference``: "(B)", a number, a word, or plain text.

    The sentence after the first "answer is", as in the benchmark's own prompts, else the last line. An option that is
    written out in full counts as its letter.
    """
    piece = next((piece for piece in _NEXT_QUESTION.split(_plain(text)) if piece.strip()), "")
    if re.fullmatch(r"\([A-Z]\)", reference.strip()):
        return _letter(piece, question)
    said = next((piece[slice(*span)] for span in Conclusions(piece)), None) or _last_line(piece)
    if re.fullmatch(r"-?\d+(?:\.\d+)?", reference.strip()):
        return number(said)
    if re.fullmatch(r"[A-Za-z]+", reference.strip()):
        word = re.search(r"[^\W\d_]+", said)
        return word[0].lower() if word else None
    return plain_text(said) or None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _letter(text: str, question: str) -> str | None:
    """Of the first conclusion that has one, or of the last line."""
    options = {plain_text(option): letter for letter, option in _OPTION.findall(question)}
    longest = max(map(len, options), default=0)
    concluded, letters = Conclusions(text), places(_LETTER, text)
    for span in concluded:
        # A sentence with more markers behind its own is none of the options: these would have to hold them, too.
        may_be = SHORTEST * (concluded.markers(span) - 1) <= longest
        if found := _named(text, span, letters) or (options.get(plain_text(text[slice(*span)])) if may_be else None):
            return f"({found})"
    if last := _last_line(text):
        found = _named(last, (0, len(last)), places(_LETTER, last)) or options.get(plain_text(last))
        return f"({found})" if found else None
    return None


def _named(text: str, span: Span, letters: Sequence[int]) -> str | None:
    """The first letter in brackets, or one that the span begins with; ``letters`` is where those in brackets are."""
    begin, end = span
    if within(letters, (begin, end - 2)) > 0:
        return text[letters[bisect_left(letters, begin)] + 1]
    found = _FIRST.match(text, begin, end)
    return found[1] if found else None


def plain_text(text: str) -> str:
    """Text as it is compared: lower case, single spaces, no quotes or full stop around it."""
    return " ".join(text.lower().split()).strip(" .\"'")


def short_answer(text: str) -> str | None:
    """The answer to a question that asks for a name or a phrase: the first line, without "Answer:" before it.

    Only the first, as Lost in the Middle (Liu et al., 2023) reads it: a model that repeats its context would be right.
    """
    plain = text.strip()
    label = _LABEL.match(plain)
    said = plain[label.end() :] if label else plain
    return next((line.strip() for line in said.splitlines() if line.strip()), None)
