"""A document's prompt as the token ids its model expects: chat template or plain text, and what cannot be sent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from pipeline.stages import Halt, Refusal
from schemas.stage import GenerateSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
_told: set[str] = set()  # models already named in the log, once per process

TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Put before templates that ask for the date: the next day would else change every answer. Llama 3's own default."""

TEMPLATE_ERRORS = TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError
"""A template is a program from outside: besides Jinja's own errors those of the expressions in it come through."""


VECTOR = -1
"""Stands in the ids of a prompt where a vector does."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What is to be continued: token ids, the most tokens it may grow by, the seed of its samples, and texts that its
    answer may copy from, beside itself.

    In place of every ``VECTOR`` among the ids the next of ``vectors`` ``[k, d]`` is read, as if it were the embedding
    of a token: what transformers calls ``inputs_embeds``. Memory slots are such. Raises ``ValueError`` where there are
    more of one than of the other, nothing to be continued, or nothing to continue it by.
    """

    ids: list[int]
    new_tokens: int
    seed: int = 0
    copied: list[int] = field(default_factory=list)
    vectors: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.ids or self.new_tokens < 1:
            raise ValueError(
                f"a prompt of {len(self.ids)} tokens to be continued by {self.new_tokens}: each must be at least 1"
            )
        places, given = self.ids.count(VECTOR), 0 if self.vectors is None else len(self.vectors)
        if places != given or VECTOR in self.copied:
            raise ValueError(f"a prompt has {places} places for vectors and {given} of these, and none to copy from")

    @classmethod
    def of(
        cls, pieces: Sequence[Sequence[int] | torch.Tensor], new_tokens: int, seed: int = 0, copied: Sequence[int] = (),
    ) -> Prompt:  # fmt: skip
        """Texts and vectors in any order: ``pieces`` are token ids, or vectors ``[k, d]``."""
        import torch  # who only encodes texts needs none

        ids: list[int] = []
        for one in pieces:
            ids += [VECTOR] * len(one) if isinstance(one, torch.Tensor) else one
        vectors = [one for one in pieces if isinstance(one, torch.Tensor)]
        return cls(ids, new_tokens, seed, list(copied), torch.cat(vectors) if vectors else None)


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Turns texts into token ids. ``window`` is the model's: prompt and answer together must fit into it."""

    name: str
    tokenizer: Any
    window: int
    spec: GenerateSpec

    def encode(self, texts: Sequence[str]) -> list[list[int] | Refusal]:
        """The ids of each text, in order, or why there are none.

        A chat template brings its own special tokens; a plain text gets those the tokenizer adds by itself. Raises
        ``Halt`` for a system message that no template would carry: the answers would be those of another experiment.
        """
        chat = self._chat()
        framed = [self._frame(text, chat) for text in texts]
        sendable = [text for text in framed if isinstance(text, str)]
        ids = iter(self._tokenize(sendable, special=not chat))
        return [self._fitting(next(ids)) if isinstance(text, str) else text for text in framed]

    def around(self, text: str, marker: str) -> list[list[int]] | Refusal:
        """The ids of what stands before, between and behind each ``marker`` of a text in its frame, or why there are
        none; the window is not looked at.

        What is between is read by itself: no token reaches over a marker. Raises ``Halt`` as ``encode`` does.
        """
        chat = self._chat()
        framed = self._frame(text, chat)
        if isinstance(framed, Refusal):
            return framed
        first, *others = framed.split(marker)
        if len(others) != text.count(marker):
            return Refusal("chat_template", f"the chat template of {self.name} changes what it is given: use its text")
        runs = self._tokenize([first], special=not chat) + self._tokenize(others, special=False)
        return runs if any(runs) or others else Refusal("empty", f"the tokenizer of {self.name} makes no token of it")

    @property
    def chats(self) -> bool:
        """Whether texts are framed by a chat template."""
        return self._chat()

    def _tokenize(self, texts: list[str], special: bool) -> list[list[int]]:
        if not texts:  # some tokenizers fail on an empty list
            return []
        # verbose=False: the tokenizer's own remark on long texts says less than the refusal that follows.
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _chat(self) -> bool:
        chat = self.spec.chat and bool(self.tokenizer.chat_template)
        if chat and isinstance(names := self.tokenizer.chat_template, dict) and "default" not in names:
            raise Halt(
                f"{self.name} has several chat templates ({', '.join(sorted(names))}) and none is called default: name "
                "one so in a copy of its tokenizer_config.json, or set chat = false"
            )
        if self.spec.system and not chat:
            lack = f"{self.name} has no chat template" if self.spec.chat else "chat = false"
            raise Halt(f"the system message has no place to go ({lack}): drop it, or name a target that chats")
        if self.spec.chat and not chat and self.name not in _told:
            log.warning("%s has no chat template: its prompts are plain text (chat = false says so)", self.name)
            _told.add(self.name)
        return chat

    @property
    def end(self) -> str:
        """The token that ends an answer: what the chat template puts behind one, else the tokenizer's own; "" if none.

        Chat models often end turns with another token than texts."""
        own = self.tokenizer.eos_token or ""
        if not self._chat():
            return own
        told = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            text = self.tokenizer.apply_chat_template(told, chat_template=self._template(), tokenize=False)
        except TEMPLATE_ERRORS:
            return own
        behind = text.rpartition("!")[2].lstrip()
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return max((token for token in tokens if behind.startswith(token)), key=len, default=own)

    def _template(self) -> str:
        known = self.tokenizer.chat_template
        template: str = known["default"] if isinstance(known, dict) else known
        return TODAY + template if "strftime_now" in template else template

    def _frame(self, text: str, chat: bool) -> str | Refusal:
        if not text.strip():
            return Refusal("empty", "the prompt is empty or only whitespace; there is nothing to answer")
        if not chat:
            return text
        system = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
        messages = [*system, {"role": "user", "content": text}]
        try:
            framed: str = self.tokenizer.apply_chat_template(
                messages, chat_template=self._template(), add_generation_prompt=True, tokenize=False
            )
        except TEMPLATE_ERRORS as error:
            return Refusal("chat_template", f"the chat template of {self.name} refuses the messages: {error}")
        return framed

    def _fitting(self, ids: list[int]) -> list[int] | Refusal:
        if not ids:
            return Refusal("empty", f"the tokenizer of {self.name} makes no token of this prompt")
        return too_long(len(ids), self.name, self.window) or ids


def too_long(places: int, name: str, window: int, fewer: str = "compress it before this stage") -> Refusal | None:
    """Why a prompt of so many tokens and vectors cannot be sent to the model called ``name``, if it cannot; and how it
    gets ``fewer``."""
    if places < window:
        return None
    return Refusal(
        "prompt_too_long",
        f"the prompt has {places} tokens and {name} holds {window}, one of them for the answer: "
        f"shorten it, {fewer}, or choose a target with a larger window",
    )
