"""Decoding by passes after stored keys and values (``pipeline.passes``), those that compression reads by.

Rows leave the pass as they end, and the next ones take their room; every row takes the columns of its own prompt and
answer. Passes are packed in half precision on a GPU, and padded anywhere else. What neither can carry is
``generate``'s (``generated``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.course import Course
from pipeline.generation.earlier import Earlier
from pipeline.generation.ending import Ending
from pipeline.generation.engine import Engine, Kind, Passes, Size, engine_for
from pipeline.generation.leniences import LENIENCES
from pipeline.generation.numbered import comparable
from pipeline.generation.paces import Way
from pipeline.generation.policy import Ahead
from pipeline.generation.prefixes import Prefixes
from pipeline.generation.prompts import Prompt
from pipeline.generation.reading import Reader
from pipeline.generation.tally import Drafts
from pipeline.generation.texts import Text
from pipeline.models import LoadedModel
from pipeline.models.loading import attends_by_itself
from pipeline.passes.compiling import hasten, read_once
from pipeline.passes.encodable import can_encode
from pipeline.passes.encoded import EncodedPasses
from pipeline.passes.packable import attends_plainly, can_pack, can_step, reads_wide
from pipeline.passes.packed import PackedPasses
from pipeline.passes.padded import PaddedPasses, keeps_columns
from pipeline.passes.room import Room
from pipeline.passes.transfers import Fetch, fetch, on_device

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

PASS_TOKENS = 2**15
"""Most tokens of prompts in a pass: they keep a GPU busy, and what a pass needs beside the store stays small."""

_LEAST_TOKENS = 512
"""A prompt of fewer is read in one pass, however small the batches."""

_SHARE = 8
"""The part of all columns that must be free before rows join others: reading them one by one would stop the others
as often as one of them ends."""

_COUNTED = 512
"""Bigrams of earlier answers that are counted in a round, in less time than any takes; where it writes many tokens,
twice as many as those, or ever more would wait."""

_COUNTED_READING = 2**14
"""The same while prompts are read: rows that end together leave all of theirs, and 2 ms of a CPU core count these."""


@dataclass(frozen=True, slots=True)
class ColumnDecoder(Kind):
    """Answers of a model by ``passes``, the kind that ``passes_for`` found for it and for the ``drafters`` of its
    ``plan``, if any. What it copies may come from what was said ``earlier``, to which its answers are added."""

    earlier: Earlier

    @property
    def padded(self) -> bool:
        """Whether a pass takes as long as if all rows were as long as the longest."""
        return not self.passes.records

    def columns_of(self, prompt: Prompt) -> int:
        """What a prompt and its answer take.

        An answer's last token is never read. Drafts may be, in the round that ends it and in the one begun meanwhile,
        and a drafter begins its reading a little sooner. A token that an encoder read takes as much as any other.
        """
        read = len(prompt.ids) + len(self.loaded.start)
        return read + prompt.new_tokens - 1 + 2 * self.plan.room + len(self.drafters)

    def alone(self) -> ColumnDecoder:
        """The same without drafters."""
        return replace(self, plan=self.plan.of(), drafters=())

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], ending: Ending, columns: int) -> None:
        """Hand the tokens of all rows that are ``left`` to ``ending``, until it ends them.

        At once as many rows are worked on as fit in ``columns``, and at least one.
        """
        with engine_for(self, self._size(prompts, sorted(ending.left), columns), ending.look) as engine:
            batch = _Batch(self, engine, prompts, ending, columns)
            arriving = batch.join()
            while arriving:
                # The device goes on before these tokens are here. What it makes of a row that they end is left out.
                following = batch.go_on(arriving)
                for rows, found, way in arriving:
                    batch.take(rows, found(), way, bool(following))
                arriving = following + batch.join() or batch.go_on([])

    def _size(self, prompts: Sequence[Prompt], rows: Sequence[int], columns: int) -> Size:
        needs = [self.columns_of(prompts[row]) for row in rows]
        columns, longest = min(sum(needs), max(columns, max(needs))), max(needs)
        copied = max(len(prompts[row].copied) for row in rows)
        at_once = min(len(rows), columns // min(needs))
        if self.passes.records:  # in powers of two
            at_once = 1 << (at_once - 1).bit_length()
        copied += self.spec.draft_earlier if self.learns else 0
        return Size(columns, at_once, longest, longest + copied + 1, self.spec.max_new_tokens)


Arriving = list[tuple[Ints, Fetch, Way | None]]
"""Rows; what was found for each of them: tokens, whose drafts were there, and how many of the tokens count
(``rounds.Target.round``); and the way of the round, None for first tokens."""


class _Batch:
    """The prompts that are worked on: where they are, and how far."""

    def __init__(
        self, decoder: ColumnDecoder, engine: Engine, prompts: Sequence[Prompt], ending: Ending, columns: int
    ) -> None:
        self._prompts, self._ending, self._device = prompts, ending, decoder.loaded.device
        self._encodes = bool(decoder.loaded.start)
        read = [Text.of(prompt) for prompt in prompts]
        begun = Text(np.array(decoder.loaded.start, np.int64))
        self._encoded, self._texts = read, [begun] * len(read) if self._encodes else read  # answers are written behind
        rows, lengths = sorted(ending.left), np.array([len(text) for text in self._texts])
        self._lengths, self._limits = lengths, np.array([prompt.new_tokens for prompt in prompts])
        self._needs = np.array([decoder.columns_of(prompt) for prompt in prompts])
        self._made = np.zeros_like(lengths)  # with what is arriving, at least
        self._on: Ints = np.zeros(0, np.int64)  # rows that are worked on
        self._is_on = np.zeros(len(lengths), bool)  # the same: sets of numpy's take longer than all else in a round
        self._ended: Ints = np.zeros(0, np.int64)  # tokens of the answers that are there
        # Longest first: what is too large for the memory shows at the start and not after an hour.
        self._waiting = sorted(rows, key=lambda row: (self._needs[row], -row))
        total, longest = int(self._needs[rows].sum()), int(self._needs[rows].max())
        self._columns = min(total, max(columns, longest))
        self._room, self._begins = Room(self._columns), np.zeros_like(lengths)
        most = min(len(rows), max(1, self._columns // int(self._needs[rows].min())))
        self._slots, self._free = np.zeros_like(lengths), list(range(most))[::-1]
        self._way = engine.usual  # of the last round that was begun
        self._read_by_drafters = np.zeros_like(lengths)  # so much of each row, while they are not ``current``
        self._prefixes = Prefixes(comparable(self._texts))
        self._engine, self._models, self._lines = engine, engine.models, engine.lines
        self._earlier: Earlier | None = decoder.earlier if decoder.learns else None
        self._recent = decoder.spec.draft_earlier
        self._leniences, self._lenience = decoder.leniences, np.zeros_like(lengths)
        follows = self._earlier.follows if self._earlier else None
        policy = engine.policy
        self._course = Course(policy, engine.steps, self._device, self._made, follows) if policy else None
        tokens = min(max(decoder.spec.batch_tokens, _LEAST_TOKENS), PASS_TOKENS)
        self._reader = Reader(engine, self._texts, self._encoded, self._slots, tokens, ending.look)
        self._current = bool(decoder.drafters)  # whether drafters have read what there is
        self._current = self._current and self._next_way(np.array(rows)[:most]).rounds > 0

    def join(self) -> Arriving:
        """Begin rows for which there is room now, the longest first: their first tokens."""
        joining: list[int] = []
        if not len(self._on) or self._room.free >= self._columns // _SHARE:
            while self._waiting and self._free and self._placed(self._waiting[-1]):
                joining.append(self._waiting.pop())
        if not joining:
            return []
        with self._course.aside() if self._course else nullcontext():
            return self._begin(joining)

    def _begin(self, joining: Sequence[int]) -> Arriving:
        rows = np.array(joining)
        slots = self._slots[rows]
        self._ending.begin(joining)
        for model in self._models:
            model.passes.place(slots, self._begins[rows])
        readers = self._models[::-1] if self._current else self._models[:1]
        read = self._reader.read(readers, rows, self._prefixes.waves(joining))
        self._begin_lines(rows)  # while the device reads
        some = self._lines.of(on_device(slots, self._device))
        numbers = some.numbers(some.length[:, None])[:, 0] if self._engine.choose.sampled else None
        first = self._engine.choose(self._models[0].head(read), numbers)  # int64 as all tokens
        some.put(some.length[:, None], first[:, None])
        some.keep(some.length + 1)
        self._on, self._is_on[rows], self._made[rows] = np.append(self._on, rows), True, 1
        return [(rows, fetch(torch.stack([first, torch.ones_like(first)], 1)), None)]

    def _begin_lines(self, rows: Ints) -> None:
        """What their rounds need, and no reading of prompts."""
        joining, slots = rows.tolist(), self._slots[rows]
        prompts, read = [self._prompts[row] for row in joining], [self._texts[row] for row in joining]
        copied = [np.array(one.copied, np.int64) for one in prompts]
        if self._encodes:
            copied = [np.append(one, self._encoded[row].tokens) for one, row in zip(copied, joining, strict=True)]
        copied = [one.clip(0, self._models[0].size - 1) if len(one) else one for one in copied]  # drafts are read
        shared = np.zeros(0, np.int64)
        if self._earlier:
            self._earlier.count(_COUNTED_READING)
            self._engine.learn(self._earlier)
            shared = self._earlier.text(self._recent)  # in front: of equal matches the latest is taken
        tokens = [one.tokens for one in read]
        vectors = np.array([len(one) - len(some) for one, some in zip(read, tokens, strict=True)])
        self._lines.begin(slots, [prompt.seed for prompt in prompts], copied, tokens, vectors, shared)
        if self._leniences:
            self._lenience[rows] = self._leniences.choose(len(rows))
            self._lines.allow(slots, LENIENCES[self._lenience[rows]])
        if self._course:
            for row, *texts in zip(joining, copied, tokens, strict=True):
                self._course.begin(row, [shared, *texts], self._ending.tokens[row], self._prompts[row].new_tokens)
            self._course.drafters_read(self._fresh(rows) * self._current)

    def _placed(self, row: int) -> bool:
        begin = self._room.take(int(self._needs[row]))
        if begin is None:
            return False
        self._begins[row], self._slots[row] = begin, self._free.pop()
        return True

    def go_on(self, arriving: Arriving) -> Arriving:
        """Begin a round of all rows that what is ``arriving`` may not end; none where it must be here before."""
        rows = self._on[self._made[self._on] < self._limits[self._on]]
        if not len(rows):
            return []
        way = self._next_way(rows)
        if way.rounds and not self._current:
            if arriving:
                return []
            with self._course.catching_up(self._missed()) if self._course else nullcontext():
                self._catch_up()
        elif self._current and not way.rounds:
            self._leave_drafters()
        self._made[rows] += 1
        # The round before, which is not here yet, may have made as many tokens as it read.
        drafts, self._way = self._way.width + way.width - 2, way
        most = int((self._lengths[rows] + self._made[rows]).max()) + drafts + len(self._models) - 1
        step = self._course.step if self._course else self._engine.steps
        return [(rows, fetch(step(self._slots[rows], way, most)), way)]

    def _next_way(self, rows: Ints) -> Way:
        if self._course is None:
            return self._engine.usual
        missed, later = self._unread()
        waiting = bool(self._waiting)
        return self._course.way(Ahead(len(rows), self._left(rows), 0, missed, later, waiting))

    def _unread(self) -> tuple[float, float]:
        """Tokens that drafters would have to read, about: what they missed, and of prompts that wait."""
        if len(self._models) == 1:
            return 0.0, 0.0
        return 0.0 if self._current else self._missed(), self._fresh(np.array(self._waiting, np.int64))

    def _missed(self) -> float:
        on = self._on
        missed = self._lengths[on] + self._made[on] - self._read_by_drafters[on]
        return float(missed.sum()) + self._to_encode(self._unseen(on))

    def _fresh(self, rows: Ints) -> float:
        """Tokens of prompts of which nothing was read."""
        return float(self._prefixes.fresh[rows].sum()) + self._to_encode(rows)

    def _to_encode(self, rows: Ints) -> float:
        return float(sum(len(self._encoded[row]) for row in rows.tolist())) if self._encodes else 0.0

    def _unseen(self, rows: Ints) -> Ints:
        """Those of which drafters have read nothing."""
        return np.array([row for row in rows.tolist() if not self._read_by_drafters[row]], np.int64)

    def _leave_drafters(self) -> None:
        """From now on they read nothing. Of the last tokens they may not have read those that a round begins with."""
        on, behind = self._on, 1 + len(self._models) + self._engine.plan.tail
        self._read_by_drafters[on] = np.maximum(0, self._lengths[on] + self._made[on] - behind)
        self._current = False

    def _catch_up(self) -> None:
        """Drafters read what they missed, but for the last token, which they read when they draft."""
        texts = {row: self._texts[row].before(self._ending.tokens[row][:-1]) for row in self._on.tolist()}
        late = [row for row in self._on.tolist() if len(texts[row]) > self._read_by_drafters[row]]
        for model in self._models[1:] if late else ():
            if len(unseen := self._unseen(np.array(late))):
                self._reader.encode(model, unseen)
            read = self._read_by_drafters[late]
            for _ in self._reader.read_on(model, np.array(late), [texts[row] for row in late], read):
                pass
        self._current = True

    def _left(self, rows: Ints) -> float:
        """Tokens to come of each of ``rows`` and of those that will take their place, about."""
        length = self._ended.mean() if len(self._ended) else self._limits.mean()
        going = np.minimum(np.maximum(length - self._made[rows], 1), self._limits[rows])
        return float((going.sum() + length * len(self._waiting)) / len(rows))

    def take(self, rows: Ints, found: NDArray[np.int64], way: Way | None, busy: bool) -> None:
        """Hand on what was found in this ``way``, if by a round; others may have the room of the rows that it ends.
        ``busy``: the device is at the next round."""
        arrived = self._course.arrived(way) if self._course else None
        on = self._is_on[rows]
        if not on.all():
            rows, found = rows[on], found[on]
        if not len(rows):
            return
        accepted = found[:, -1] - 1
        self._made[rows] += accepted
        if self._leniences and way and way.rounds:
            self._leniences.saw(self._lenience[rows], accepted)
        whose = found[:, found.shape[1] // 2 : -1]
        newest = [one[: one[-1]] for one in found.tolist()]
        drafts = Drafts(whose, self._engine.passes_in(way)) if way and way.width > 1 else None
        going = set(self._ending.take(rows.tolist(), newest, drafts))
        if ended := [row for row in rows.tolist() if row not in going]:
            self._leave(np.array(ended))
        if self._earlier and busy and len(self._on):  # where all have ended, others are waited for
            self._earlier.count(max(_COUNTED, 2 * int(found[:, -1].sum())))
        if self._course and arrived:
            drafted = (whose >= 0).sum(1)
            self._course.saw(way, rows, self._on, accepted, drafted, bool(self._waiting), arrived)

    def _leave(self, rows: Ints) -> None:
        """These have ended."""
        self._ended = np.append(self._ended, self._made[rows])
        for row in rows.tolist():
            if self._earlier:
                self._earlier.add(self._ending.tokens[row], self._recent)
            self._prefixes.leave(row)
            self._room.give(int(self._begins[row]), int(self._needs[row]))
            self._free.append(int(self._slots[row]))
        self._is_on[rows] = False
        self._on = self._on[self._is_on[self._on]]
        if not self._models[0].passes.records:
            self._close_ranks()

    def _close_ranks(self) -> None:
        """The last lines take the places of those that ended: padded passes would gather what is not in front."""
        taken = set(self._slots[self._on].tolist())
        holes = [slot for slot in range(len(taken)) if slot not in taken]
        late = self._on[self._slots[self._on] >= len(taken)]
        for row, hole in zip(late.tolist(), holes, strict=True):
            slot = int(self._slots[row])
            for model in self._models:
                model.passes.copy(np.array([slot]), np.array([hole]), self._needs[[row]])
            self._lines.move(slot, hole)
            self._free[self._free.index(hole)] = slot
            self._slots[row] = hole
        self._on = self._on[np.argsort(self._slots[self._on])]


def passes_for(loaded: LoadedModel) -> Passes | None:
    """The passes in which ``ColumnDecoder`` says what ``loaded`` says; asked of a loaded model once."""
    model: Any = loaded.model
    packing = _worth_packing(loaded)
    known: dict[bool, Passes | None] = vars(model).setdefault("contextmill_passes", {})
    if packing not in known:
        why = _carried_by_none(loaded)
        if why:
            log.warning("%s writes by transformers' generate, at a fraction of the speed: %s", loaded.ref.name, why)
        known[packing] = None if why else _found(model, packing)
    return known[packing]


def _worth_packing(loaded: LoadedModel) -> bool:
    """float32 and the CPU read padded: there answers are to be the same on every machine."""
    return loaded.device.type == "cuda" and loaded.model.dtype in (torch.bfloat16, torch.float16)


def _carried_by_none(loaded: LoadedModel) -> str:
    """Why no passes of ours can read such a model, as far as it can be told from what it is."""
    model: Any = loaded.model
    if model.config.is_encoder_decoder:
        return ""
    if attends_by_itself(loaded):
        return "it attends in a way of its own, or keeps a state that cannot be taken back"
    if not hasattr(model, "get_decoder") or model.get_output_embeddings() is None:
        return "its layers or its head are not where others have them"
    if not keeps_columns(model.get_decoder().config):
        return "some of its layers keep a state instead of keys and values, which cannot be taken back"
    return "" if _is_all(model, model.get_output_embeddings()) else "its logits are scaled or capped behind its head"


def _found(model: Any, packing: bool) -> Passes | None:
    if model.config.is_encoder_decoder:
        return EncodedPasses if can_encode(model) else None
    trunk = model.get_decoder()
    if packing and hasattr(trunk, "layers") and attends_plainly(trunk):
        # Nothing is compiled of what our own kernels read.
        ready = reads_wide(trunk) or (hasten(trunk, trunk.layers, lambda: read_once(trunk)) and can_pack(trunk))
        if ready and can_step(trunk, PackedPasses):
            return PackedPasses
    return PaddedPasses if can_step(trunk, PaddedPasses) else None


@torch.inference_mode()
def _is_all(model: Any, head: Any) -> bool:
    """Whether nothing comes after the head: some models scale their logits or cap them."""
    ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device).expand(2, -1)  # one row: compiled anew
    ours = head(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = model(input_ids=ids, use_cache=False).logits
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # small logits would not show it
    return not capped and torch.allclose(ours.float(), theirs.float(), rtol=0.01, atol=0.01)
