"""Answers from a transformers model on this machine, a batch of prompts at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from typing import Literal

from pipeline.batching import attempted, out_of_memory, run_packed
from pipeline.generation.decoding import ColumnDecoder, passes_for
from pipeline.generation.earlier import Earlier
from pipeline.generation.ending import Ending, end_tokens
from pipeline.generation.engine import Passes
from pipeline.generation.generated import GenerateDecoder, minds_company
from pipeline.generation.prompts import Prompt, PromptEncoder
from pipeline.generation.rounds import DrafterFailed
from pipeline.generation.sampling import document_seed
from pipeline.generation.slotted import Pieces, Slotted, has_slots
from pipeline.generation.tally import Drafted
from pipeline.generation.texts import check_vectors
from pipeline.models import LoadedModel
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.stage import GenerateSpec

log = logging.getLogger(__name__)

MAX_GRAM = "max-gram"
"""The name of what copies, among those of models that draft."""


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer. ``tokens`` are all that were made for it, end token and stop string included; ``text`` has neither.

    ``seconds`` is its share of the time in which it and others were worked on, by tokens; ``latency_seconds`` the time
    from the beginning of its prompt to its last token. ``passes`` of the model, the prompt's included, gave a token
    each and what they accepted of the ``drafted`` ones.
    """

    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    seconds: float
    latency_seconds: float
    passes: int
    drafts: dict[str, Drafted]

    @property
    def drafted(self) -> int:
        """Tokens, by whomever."""
        return sum(one.drafted for one in self.drafts.values())


@dataclass(frozen=True, slots=True)
class LocalGenerator:
    """Prompts for the fastest decoder that model and device allow, as many at once as memory holds. Drafts may copy
    what the model said ``earlier``; without any, what it says to these prompts."""

    loaded: LoadedModel
    spec: GenerateSpec
    run: Run
    drafters: Sequence[LoadedModel | None] = ()
    earlier: Earlier | None = None

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order. Raises ``Stopped`` between batches, or within one, when told to stop;
        ``ModelError`` for vectors that the model cannot read."""
        check_vectors(self.loaded, prompts)
        decoder = self._decoder()
        if decoder and not decoder.padded:
            work = partial(self._all, decoder, prompts)
            return self._work(prompts, decoder, work) if prompts else []
        # The room a prompt leaves in the window keys generate's batches: past the window a model with learned positions
        # has no embedding for a row that is dragged along.
        alone = decoder is None and not self.loaded.start and minds_company(self.loaded)
        return run_packed(
            [decoder.columns_of(one) if decoder else len(one.ids) + one.new_tokens for one in prompts],
            1 if alone else self.spec.batch_tokens,
            lambda rows: self._batch(decoder, [prompts[row] for row in rows]),
            keys=None if decoder else [prompt.new_tokens for prompt in prompts],
        )

    def _decoder(self) -> ColumnDecoder | None:
        """None where the model is ``generate``'s."""
        passes, plan = passes_for(self.loaded), self.spec.plan
        if passes is None:
            if plan.most:
                log.warning("%s is decoded by transformers' generate, hence without drafts", self.loaded.ref.name)
            return None
        fitting = {place: one for place, one in enumerate(self.drafters) if self._fits(one, passes)}
        drafters = [one for one in fitting.values() if one]
        plan, earlier = plan.of(*fitting), self.earlier or Earlier.of(self.loaded.model)
        return ColumnDecoder(self.loaded, self.spec, passes, plan, drafters, earlier)

    def _fits(self, drafter: LoadedModel | None, passes: Passes) -> bool:
        """A drafter reads in the same passes as its target, or the target would have to read in the slower ones."""
        if drafter is None:
            return False
        if reason := misfit(drafter, passes):
            log.warning("%s", reason)
        return not reason

    def _all(self, decoder: ColumnDecoder, prompts: Sequence[Prompt], ending: Ending) -> None:
        """Where memory runs out, what is not ended begins anew in half of the room."""
        columns = self.spec.batch_tokens
        while True:
            left = [decoder.columns_of(prompts[row]) for row in ending.left]
            columns = min(columns, sum(left))
            last = columns <= max(left)
            if attempted(partial(_decode, decoder, prompts, ending, columns, last), last):
                return
            log.warning("out of memory: %d rows in room for %d tokens go on in half of it", len(ending.left), columns)
            columns //= 2

    def _batch(self, decoder: ColumnDecoder | None, prompts: Sequence[Prompt]) -> list[Generation]:
        if decoder:
            columns, last = sum(map(decoder.columns_of, prompts)), len(prompts) == 1
            return self._work(prompts, decoder, lambda ending: _decode(decoder, prompts, ending, columns, last))
        return self._work(prompts, None, partial(GenerateDecoder(self.loaded, self.spec).decode, prompts))

    def _work(
        self, prompts: Sequence[Prompt], decoder: ColumnDecoder | None, decode: Callable[[Ending], None]
    ) -> list[Generation]:
        if self.run.stopping():
            raise Stopped
        start = time.perf_counter()
        ends = end_tokens(self.loaded.model, self.loaded.tokenizer, self.spec.stop)
        limits = [prompt.new_tokens for prompt in prompts]
        names = [MAX_GRAM, *(one.ref.name for one in decoder.drafters)] if decoder else [MAX_GRAM]
        ending = Ending(limits, self.loaded.tokenizer, ends, self.spec.stop, self.run, len(names))
        decode(ending)
        return self._finish(prompts, ending, names, time.perf_counter() - start)

    def _finish(
        self, prompts: Sequence[Prompt], ending: Ending, names: Sequence[str], elapsed: float
    ) -> list[Generation]:
        counts = [len(prompt.ids) + len(made) for prompt, made in zip(prompts, ending.tokens, strict=True)]
        generations = []
        for row, count in enumerate(counts):
            text, ended = ending.text(row)
            reason: Literal["stop", "length"] = "stop" if ended else "length"
            share = elapsed * count / sum(counts)
            seconds, passes = ending.seconds[row], ending.passes[row]
            drafts = dict(zip(names, ending.drafts.of(row), strict=True))
            generations.append(Generation(text, ending.tokens[row], reason, share, seconds, passes, drafts))
        ending.report()
        self.run.progress(len(prompts), sum(len(prompt.ids) for prompt in prompts))
        return generations


def misfit(drafter: LoadedModel, passes: Passes) -> str | None:
    """Why it cannot draft for a target that is read in ``passes``."""
    if (own := passes_for(drafter)) is passes:
        return None
    how = own.__name__ if own else "transformers' generate"
    return f"{drafter.ref.name} does not draft: it needs {how}, its target {passes.__name__}"


def _decode(decoder: ColumnDecoder, prompts: Sequence[Prompt], ending: Ending, columns: int, last: bool) -> None:
    """With its drafters; without them where they fail, or where memory runs out and nothing smaller is left to try."""
    try:
        decoder.decode(prompts, ending, columns)
        return
    except Exception as error:
        theirs = isinstance(error, DrafterFailed) or (last and out_of_memory(error))
        if not decoder.drafters or not theirs:
            raise
        log.warning("drafters are given up for this batch: %s", error)
    decoder.alone().decode(prompts, ending, columns)


def answer(
    documents: Sequence[Document], name: str, loaded: LoadedModel, spec: GenerateSpec, run: Run,
    drafters: Sequence[LoadedModel | None] = (), earlier: Earlier | None = None,
) -> list[Outcome]:  # fmt: skip
    """The outcome of each document, in order: the answer of the model called ``name``, or why it was not asked. Drafts
    may copy what it said ``earlier``."""
    asked = prompts_of(documents, name, loaded, spec, run.output)
    prompts = [one for one in asked if isinstance(one, Prompt)]
    run.progress(len(documents) - len(prompts), 0)
    made = iter(zip(prompts, LocalGenerator(loaded, spec, run, drafters, earlier).generate(prompts), strict=True))
    known = dict(zip_longest(spec.drafters, drafters)) if spec.plan.most else None
    whole = loaded.parameters
    return [one if isinstance(one, Refusal) else _result(name, whole, known, *next(made)) for one in asked]


def prompts_of(
    documents: Sequence[Document], name: str, loaded: LoadedModel, spec: GenerateSpec, output: str | None = None
) -> list[Prompt | Refusal]:
    """What the model called ``name`` is asked for each document, in order, or why it is not. Slots of contexts lie in
    files of the job in the folder ``output``. Raises ``SlotsError``."""
    encoder = PromptEncoder(name, loaded.tokenizer, loaded.window, spec)
    texts = iter(encoder.encode([document.prompt for document in documents if not has_slots(document)]))
    slotted = Slotted(encoder, output)
    found: list[Prompt | Refusal] = []
    for document in documents:
        if has_slots(document):
            said = slotted.pieces(document)
        else:
            ids = next(texts)
            said = ids if isinstance(ids, Refusal) else [ids]
        found.append(said if isinstance(said, Refusal) else _prompt(document, said, loaded, spec))
    return found


def _prompt(document: Document, pieces: Pieces, loaded: LoadedModel, spec: GenerateSpec) -> Prompt:
    """Answers may copy words that were cut from a compressed prompt, or are slots: the original is there to draft
    from."""
    seed = document_seed(spec.seed, document.content_hash)
    copies = spec.plan.copies and ("compressed" in document.fields or has_slots(document))
    original = document.parts.render() if copies else ""
    copied = loaded.tokenizer(original, add_special_tokens=False, verbose=False)["input_ids"] if original else []
    room = loaded.window if loaded.start else loaded.window - sum(map(len, pieces))
    return Prompt.of(pieces, min(spec.max_new_tokens, room), seed, copied)


def _result(
    model: str, parameters: int, drafters: Mapping[str, LoadedModel | None] | None, prompt: Prompt,
    generation: Generation,
) -> Result:  # fmt: skip
    """``drafters``: by the names that the job has for them, whether they are there or not; None where nothing may
    draft."""
    fields = {
        "generated": generation.text,
        "generate_model": model,
        "finish_reason": generation.finish_reason,
        "tokens_prompt": len(prompt.ids),
        "tokens_generated": len(generation.tokens),
        "tokens_cached": None,
        "target_passes": generation.passes,
        "tokens_drafted": generation.drafted,
        "tokens_accepted": len(generation.tokens) - generation.passes,
        "drafts": None if drafters is None else _drafts(model, parameters, drafters, generation),
        "generate_seconds": generation.seconds,
        "latency_seconds": generation.latency_seconds,
        "cost_usd": None,  # what a machine's hour costs is accounted for over the whole job
    }
    return Result(
        fields,
        tokens_in=len(prompt.ids),
        tokens_out=len(generation.tokens),
        seconds=generation.seconds,
        latency_seconds=generation.latency_seconds,
    )


def _drafts(
    model: str, parameters: int, drafters: Mapping[str, LoadedModel | None], generation: Generation
) -> list[dict[str, int | str]]:
    """The column ``drafts``: the target, and all that drafted for it or were to."""
    nothing = Drafted(0, 0, 0)
    found = [(model, parameters, Drafted(generation.passes, 0, 0)), (MAX_GRAM, 0, generation.drafts[MAX_GRAM])]
    for name, one in drafters.items():  # which may be resident under another name
        did = generation.drafts.get(one.ref.name, nothing) if one else nothing
        found.append((name, one.parameters if one else 0, did))
    return [{"model": name, "parameters": size, **asdict(did)} for name, size, did in found]
