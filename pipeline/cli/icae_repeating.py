"""The command `icae reconstruct`: texts through their slots and back, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.shared import (
    USAGE,
    Column,
    Continuations,
    Json,
    Refine,
    err,
    examples,
    fail,
    out,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from pipeline.memory.encode_stage import Encode
    from pipeline.memory.repeating import Repetition
    from schemas.settings import Settings

commands = typer.Typer()

HEAD = 600
"""Characters of a text, and of what comes back of it, that are shown."""


@commands.command(
    epilog=examples(
        "contextmill icae reconstruct night texts.jsonl",
        "contextmill icae reconstruct night notes.txt --precision int8 --all",
        "contextmill icae reconstruct night texts.jsonl --span 128 --ratio 4 --json",
    )
)
def reconstruct(
    encoder: Annotated[str, typer.Argument(help="An encoder's name, or its folder.", metavar="ENCODER")],
    texts: Annotated[list[str], typer.Argument(help="Texts; any job's input will do.", metavar="TEXTS...")],
    column: Column = None,
    most: Annotated[int, typer.Option("--most", min=1, help="At most so many texts, the first ones.")] = 16,
    span: Annotated[
        int | None, typer.Option("--span", min=1, help="Most tokens of a span; default: as it was trained.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", min=1, help="Tokens a slot; default: as it was trained.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="Of each span, whatever its length; in place of a ratio.")
    ] = None,
    refine: Refine = 0,
    continuations: Continuations = 0,
    precision: Annotated[str, typer.Option("--precision", help="Of the slots: float16, int8 or int4.")] = "float16",
    base: Annotated[str | None, typer.Option("--base", help="Where the model is that it was trained for.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: what there is.")] = "auto",
    all_: Annotated[bool, typer.Option("--all", help="Show texts to their ends, however long.")] = False,
    json_: Json = False,
) -> None:
    """Put texts into slots and let the model repeat them from these alone: what an encoder keeps, to be read.

    A row's contexts are one text. Slots are those that an encode stage would
    store. Words that are not those of the text are red, and words that are
    missing are struck out; into a file or a pipe they stand in [] and [- -].
    """
    from pipeline.memory.contexts import contexts_of
    from schemas.job import Columns, InputSpec

    given = settings()
    cut = {"span": span, "ratio": ratio, "slots": slots}
    fit = {"refine": refine, "continuations": continuations}
    stage = _stage(encoder, base, {**cut, **fit, "precision": precision, "device": device}, given)
    found = contexts_of(InputSpec(path=tuple(texts), columns=Columns(text=column)))
    if not found.texts:
        fail(f"{', '.join(texts)}: none of its rows is a text ({found.first_bad or 'there are none'})", USAGE)
    stage.check()
    shown = err.status(f"{counted(min(most, len(found.texts)), 'text')} into slots, and back")
    with interrupts.in_order(), shown if err.is_terminal else nullcontext():
        repeated = _repeated(stage, found.texts[:most], given)
    _tell(repeated, found.read[:most], encoder, None if all_ else HEAD, json_)
    for said in found.left_out():
        err.print(said, markup=False, soft_wrap=True)
    if len(found.texts) > most:
        err.print(f"{most} of {len(found.texts)} texts; --most says how many")


def _stage(encoder: str, base: str | None, said: dict[str, Any], given: Settings) -> Encode:
    """The encode stage that a job file of these settings would have."""
    from pydantic import ValidationError

    from pipeline.memory.encode_stage import Encode
    from pipeline.models import encoders
    from schemas.job import TargetSpec
    from schemas.memory import EncodeSpec

    model = encoders.read_manifest(encoders.find(encoder, given.cache)).base
    try:
        spec = EncodeSpec.model_validate({"kind": "encode", "encoder": encoder, **said})
    except ValidationError as error:
        wrong = error.errors()[0]
        named = f"--{'.'.join(map(str, wrong['loc']))} {wrong['input']}: " if wrong["loc"] else ""  # none: of several
        fail(named + wrong["msg"].removeprefix("Value error, "), USAGE)
    return Encode(spec, TargetSpec(model=base or model))


def _repeated(stage: Encode, texts: tuple[str, ...], given: Settings) -> list[Repetition]:
    from pipeline.memory.repeating import repeat
    from pipeline.models import ModelPool

    return repeat(stage, texts, ModelPool(settings=given), interrupts.check)


def _tell(repeated: list[Repetition], read_from: Sequence[str], encoder: str, most: int | None, json_: bool) -> None:
    if json_:
        from dataclasses import asdict

        rows = [{"source": read, **asdict(one)} for read, one in zip(read_from, repeated, strict=True)]
        print_json({"encoder": encoder, "texts": rows})
        return
    from pipeline.memory.display import print_repetitions

    print_repetitions(repeated, read_from, out, most)
