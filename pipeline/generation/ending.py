"""When an answer ends: end tokens, stop strings, its limit, a stopping worker. Asked by the decoders at every step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel

from pipeline.generation.tally import Drafts, Tally
from pipeline.stages import Run, Stopped

LOOK_SECONDS = 0.5  # how often a running batch reports progress and asks whether to stop
SPARE_TOKENS = 16  # those of a stop string without text of their own: skipped special tokens, parts of a character


def end_tokens(model: PreTrainedModel, tokenizer: Any, stops: Iterable[str]) -> frozenset[int]:
    """Every id that ends an answer of this model: generation config, model config, tokenizer, special stop strings.

    Chat models often end a turn with another token than the tokenizer's own, and list it in one place only.
    """
    ids: set[int] = set()
    configs = (model.generation_config, model.config.get_text_config(), tokenizer)
    for found in (config.eos_token_id for config in configs):
        ids.update([found] if isinstance(found, int) else found or ())
    # Special tokens never show in the text, so a stop string that is one must be met as a token.
    added = tokenizer.get_added_vocab()
    return frozenset(ids | {added[stop] for stop in stops if stop in added})


class Ending:
    """Keeps each row's new tokens up to and with its last one, in ``tokens``.

    Raises ``Stopped`` out of the decoder: a worker told to leave must not wait for the longest answer.
    """

    def __init__(
        self, limits: Sequence[int], tokenizer: Any, ends: frozenset[int], stops: Sequence[str], run: Run,
        drafters: int = 1,
    ) -> None:  # fmt: skip
        """``drafters``: as many draft, Max-Gram included."""
        self.tokens: list[list[int]] = [[] for _ in limits]
        self.seconds = [0.0] * len(limits)  # from when a row began to its last token
        self.passes = [0] * len(limits)  # of the model, each of which gave a row one token or more
        self.drafts = Tally(len(limits), drafters)  # what was proposed to these, and by whom
        self.left = set(range(len(limits)))
        self._limits, self._tokenizer, self._ends, self._stops, self._run = limits, tokenizer, ends, tuple(stops), run
        # a token that adds text adds a byte or more
        self._tail = max((len(stop.encode()) for stop in stops), default=0) + SPARE_TOKENS
        self._begun = [0.0] * len(limits)
        self._looked = time.monotonic()
        self._counted = 0

    def begin(self, rows: Sequence[int]) -> None:
        """From now on their time counts. What an earlier attempt made of them is forgotten."""
        now = time.perf_counter()
        self.drafts.begin(rows)
        for row in rows:
            self.tokens[row], self.passes[row], self._begun[row] = [], 0, now

    def take(self, rows: Sequence[int], newest: Sequence[Sequence[int]], drafts: Drafts | None = None) -> list[int]:
        """The newest tokens of each of these ``rows``, and what was drafted for them -> the rows that go on.

        What comes after an end is forgotten.
        """
        ended: set[int] = set()
        before = [len(self.tokens[row]) for row in rows]
        for row in rows:
            self.passes[row] += 1
        for place in range(max(map(len, newest))):
            told = [row for row, some in zip(rows, newest, strict=True) if len(some) > place and row not in ended]
            for row, some in zip(rows, newest, strict=True):
                if len(some) > place and row not in ended:
                    self.tokens[row].append(some[place])
            ended.update(set(told).difference(self._going_on(told)))
        if drafts:
            made = [len(self.tokens[row]) - had for row, had in zip(rows, before, strict=True)]
            self.drafts.add(rows, made, drafts)
        now = time.perf_counter()
        for row in ended:
            self.left.remove(row)
            self.seconds[row] = now - self._begun[row]
        self.look()
        return [row for row in rows if row not in ended]

    def text(self, row: int) -> tuple[str, bool]:
        """The row's answer without the stop string, and whether it came to an end of its own."""
        tokens = self.tokens[row]
        ended = tokens[-1] in self._ends
        text = self._decode(tokens[:-1] if ended else tokens)
        cuts = [at for at in map(text.find, self._stops) if at >= 0]
        return text[: min(cuts)] if cuts else text, ended or bool(cuts)

    def report(self) -> None:
        """Tokens made since the last report."""
        made = max(self._counted, sum(map(len, self.tokens)))  # less after a new beginning
        self._run.progress(0, made - self._counted)
        self._counted = made

    def _going_on(self, rows: Sequence[int]) -> list[int]:
        going = [row for row in rows if self.tokens[row][-1] not in self._ends]
        if self._stops and going:
            tails = self._decode_all([self.tokens[row][-self._tail :] for row in going])
            # The whole answer is only decoded when its tail shows a stop string: what ends it is what text() will cut.
            going = [
                row
                for row, tail in zip(going, tails, strict=True)
                if not (self._stopped(tail) and self._stopped(self._decode(self.tokens[row])))
            ]
        return [row for row in going if len(self.tokens[row]) < self._limits[row]]

    def _stopped(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)

    def _decode_all(self, rows: list[list[int]]) -> list[str]:
        """Every row's text. At once where the tokenizer can: hundreds of rows a step would cost more than the step."""
        inner = getattr(self._tokenizer, "backend_tokenizer", None)
        if inner is None:
            return [self._decode(tokens) for tokens in rows]
        texts: list[str] = inner.decode_batch(rows, skip_special_tokens=True)
        return texts

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def look(self) -> None:
        """Report what was made, and raise ``Stopped`` where that is asked for; now and then."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if self._run.stopping():
                raise Stopped
            self.report()
