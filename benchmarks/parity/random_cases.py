"""Random prompts and options for the library and for us: every option, in every combination that comes up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from benchmarks.parity.random_model import TEXTS

FUNCTIONS = {"compress_prompt": 65, "structured_compress_prompt": 20, "compress_json": 15}
"""With how often each comes up."""

ODD = ("\n\n\n", "a" * 70, " . , ? n't 's ", "+++ + ++", "😀👩‍👩‍👧", "。", "  ", "\r\n\t", "He said , no !")

CHOICES: dict[str, tuple[float, tuple[Any, ...]]] = {
    "iterative_size": (0.6, (2, 10, 20, 40, 50, 100, 200)),
    "use_token_level_filter": (0.12, (False,)),
    "use_sentence_level_filter": (0.25, (True,)),
    "keep_split": (0.2, (True,)),
    "keep_first_sentence": (0.2, (0, 1, 2)),
    "keep_last_sentence": (0.2, (0, 1, 2)),
    "keep_sentence_number": (0.2, (0, 1, 2)),
    "high_priority_bonus": (0.1, (0, 3, 1000)),
    "context_budget": (0.3, ("+100", "*1.5", "-20", "+50", "/2", "*2+10", "+10*3", "")),
    "token_budget_ratio": (0.1, (1.0, 2.0)),
    "rank_method": (0.5, ("longllmlingua",)),
    "condition_in_question": (
        0.5, ("none", "before", "after", "after_condition", "before_condition", "none_condition"),
    ),
    "condition_compare": (0.25, (True,)),
}  # fmt: skip
"""Option -> how often it is given, and the values it may have."""

PROMPT_CHOICES: dict[str, tuple[float, tuple[Any, ...]]] = {
    "reorder_context": (0.3, ("original", "two_stage", "sort")),
    "use_context_level_filter": (0.15, (False,)),
    "force_context_ids": (0.2, ([0], [1, 0], [2], [3, 1])),
    "force_context_number": (0.1, (0, 1, 3)),
    "dynamic_context_compression_ratio": (0.3, (0.1, 0.3, 0.4)),
    "add_instruction": (0.2, (True,)),
    "concate_question": (0.2, (False,)),
}
JSON_CHOICES: dict[str, tuple[float, tuple[Any, ...]]] = {
    "use_keyvalue_level_filter": (0.3, (True,)),
    "reorder_keyvalue": (0.2, ("two_stage", "sort")),
}
VALUES: dict[str, Callable[[Random], Any]]


class Random(random.Random):
    """Random texts, prompts and options."""

    def text(self, length: int) -> str:
        """About so many characters; now and then something odd."""
        words = " ".join(self.choices(TEXTS, k=1 + length // 100))
        begin = self.randrange(max(1, len(words) - length))
        cut = words[begin : begin + length]
        return self.choice(ODD) + cut + self.choice(ODD) if self.random() < 0.15 else cut

    def tagged(self, length: int) -> str:
        """A context of up to four segments."""
        segments = [self._segment(length // 3) for _ in range(self.randint(1, 4))]
        lost = "outside of all tags " if self.random() < 0.1 else ""
        return lost.join(segments) if self.random() < 0.85 else self.text(length)

    def _segment(self, length: int) -> str:
        said = [f", rate={self.choice((0, 0.1, 0.3, 0.5, 0.8, 1, 1.0))}"] if self.random() < 0.7 else []
        said += [f", compress={self.choice((True, False))}"] if self.random() < 0.4 else []
        self.shuffle(said)
        return f"<llmlingua{''.join(said)}>{self.text(length).replace('<', '') or 'x'}</llmlingua>"

    def options(self, function: str) -> dict[str, Any]:
        """Keyword arguments of ``function``."""
        asked: dict[str, Any] = {"rate": self.choice((0.02, 0.1, 0.25, 0.33, 0.5, 0.55, 0.7, 0.9, 1.0))}
        if self.random() < 0.5:
            asked = {"target_token": self.choice((0, 1, 5, 20, 50, 100, 150, 200, 300, 500))}
        own = JSON_CHOICES if function == "compress_json" else PROMPT_CHOICES
        for name, (often, values) in (CHOICES | own).items():
            if self.random() < often:
                asked[name] = self.choice(values)
        if function == "structured_compress_prompt" and self.random() < 0.3:
            asked["strict_preserve_uncompressed"] = False
        return asked

    def contexts(self, function: str) -> list[str]:
        """Contexts for ``function``; one of them twice at times, and none at others."""
        count = self.choice((1, 1, 2, 3, 5, 8))
        size = self.choice((5, 60, 200, 400, 900, 1800 if count < 3 else 300))
        make = self.tagged if function == "structured_compress_prompt" else self.text
        found = [make(size) for _ in range(count)]
        return found + found[:1] if self.random() < 0.1 else found[: 0 if self.random() < 0.03 else None]

    def group(self, size: int, name: str) -> list[dict[str, Any]]:
        """So many cases of equal options."""
        function = self.choices(list(FUNCTIONS), list(FUNCTIONS.values()))[0]
        kwargs = self.options(function)
        kinds = self.sample(sorted(VALUES), self.randint(1, len(VALUES)))
        if function == "compress_json":
            kwargs["json_config"] = {
                kind: {"rate": self.choice((0.3, 0.5, 0.8, 1)), "compress": self.random() < 0.7,
                       "value_type": kind, "pair_remove": self.random() < 0.5}
                for kind in kinds
            }  # fmt: skip
        made = []
        for number in range(size):
            contexts = self.contexts(function)
            if function == "compress_json":
                contexts = [json.dumps({kind: VALUES[kind](self) for kind in kinds})]
            question = "" if self.random() < 0.1 else self.text(self.choice((20, 60, 150)))
            instruction = "" if self.random() < 0.5 else self.text(60)
            made.append({"id": f"{name}-{number}", "function": function, "context": contexts,
                         "instruction": instruction, "question": question, "kwargs": kwargs})  # fmt: skip
        return made


VALUES = {
    "str": lambda rnd: rnd.text(rnd.choice((20, 200, 500))),
    "list": lambda rnd: [rnd.text(80) for _ in range(rnd.randint(0, 4))],
    "dict": lambda rnd: {f"key {number}": rnd.text(60) for number in range(rnd.randint(0, 3))},
    "number": lambda rnd: rnd.choice((1, 2.5, 10_000)),
    "bool": lambda rnd: rnd.random() < 0.5,
}
"""Type of a JSON value -> one of its kind."""
