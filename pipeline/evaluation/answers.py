"""What a model's text says the answer is, read as the field reads it for each task.

None of this sees whether the answer is right: of a reference only its kind (a letter, a number, a word) is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_DECORATION = str.maketrans({"−": "-", "*": " ", **dict.fromkeys("$€£¥`", None)})
_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_CONCLUDES = re.compile(
    r"(?<!whether )(?<!whether the )(?<!what )(?<!what the )(?<!if )(?<!if the )(?<!know the )(?<!find the )"
    r"answer\s*(?:is|are|was|would be)\b",
    re.IGNORECASE,
)
_HEADS = re.compile(r"answer\s*[:=]|####|\\boxed\{", re.IGNORECASE)
_ALONE = re.compile(r"\s*-?[\d.,]+\}?%?\.?(?:[ \t]+[^\W\d]+\.?)?\s*(?:\n|$)")
_SENTENCE = re.compile(r"[\s:]*((?:[^\n.!?]|[.!?](?!\s|$))*)")
_NEXT_QUESTION = re.compile(
    r"(?:^|\n)[ \t*#>]*(?:(?i:question|q|problem)(?:[ \t]*[#(]?\d{1,3}[.)]?)?[ \t*]*:|(?:Question|Q)[ \t]+(?=[A-Z]))"
)
_LABEL = re.compile(
    r"(?:(?:so|thus|therefore),?\s+)?(?:the\s+)?(?:final\s+)?answer(?:\s+is\b\s*:?|\s*:)\s*|a:\s*", re.IGNORECASE
)
_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)(.*)$", re.MULTILINE)


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
    for said in _conclusions(text):
        found = _NUMBER.search(said.rpartition("=")[2]) or _NUMBER.search(said)
        if found:
            return found[0]
    return None


def _plain(text: str) -> str:
    return re.sub(r"(?<!\d)\*\*|\*\*(?!\d)", "", text).translate(_DECORATION)


def _conclusions(text: str) -> Iterator[str]:
    """What follows each marker of an answer, to the end of its sentence; the likeliest answer first.

    A conclusion before a heading, unless nothing but a number stands under one that comes first.
    """
    said, heads = list(_CONCLUDES.finditer(text)), list(_HEADS.finditer(text))
    bare = [head for head in heads if _ALONE.match(text, head.end()) and (not said or head.start() < said[0].start())]
    for marker in (*bare[:1], *said, *reversed(heads)):
        sentence = _SENTENCE.match(text, marker.end())
        if sentence and sentence[1].strip():
            yield sentence[1].strip()


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
    if re.fullmatch(r"\([A-Z]\)", reference.strip()):
        return next(filter(None, (_letter(said, question) for said in _concluded(text))), None)
    said = next(_concluded(text), "")
    if re.fullmatch(r"-?\d+(?:\.\d+)?", reference.strip()):
        return number(said)
    if re.fullmatch(r"[A-Za-z]+", reference.strip()):
        word = re.search(r"[^\W\d_]+", said)
        return word[0].lower() if word else None
    return plain_text(said) or None


def _concluded(text: str) -> Iterator[str]:
    """The conclusions of the first piece that says something, its last line after them."""
    piece = next((piece for piece in _NEXT_QUESTION.split(_plain(text)) if piece.strip()), "")
    yield from _conclusions(piece)
    yield from [line.strip() for line in piece.splitlines() if line.strip()][-1:]


def _letter(said: str, question: str) -> str | None:
    if found := re.search(r"\(([A-Z])\)", said) or re.match(r"(?:[Oo]ption\s+)?([A-Z])(?:[).:,]|\s*$)", said):
        return f"({found[1]})"
    options = {plain_text(option): letter for letter, option in _OPTION.findall(question)}
    letter = options.get(plain_text(said))
    return f"({letter})" if letter else None


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
