"""The command that shows one document: what compression kept of it, and what it cut."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.shared import FAILURE, USAGE, Json, Output, database, err, examples, fail, out, print_json, settings

if TYPE_CHECKING:
    from pipeline.cuts import Cut

commands = typer.Typer()

HEAD = 20_000
"""Characters of a document that a terminal gets at once."""
TOGETHER = 500
"""Stretches that are printed at once: what the terminal's library does with more takes ever longer."""
KEPT, REMOVED = "bold", "dim strike red"
OTHERS = 3


@commands.command(
    epilog=examples(
        "contextmill show 17",
        "contextmill show 17@0.5 --job 3f2a -o runs/night",
        "contextmill show 17 --json",
        then="A job of several rates has each document once at each rate, as ID@RATE. Into a file or a pipe, what was "
        r"removed stands between \[- and -].",
    )
)
def show(
    document: Annotated[str, typer.Argument(help="A document's id.", metavar="DOC")],
    job: Annotated[
        str | None, typer.Option("--job", help="A job's id, or how it begins; default: the newest that has it.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="However long it is.")] = False,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Show one document with what compression kept of it, and struck through what it cut."""
    from pipeline.accounting.wording import visible
    from pipeline.cuts import NotCutError, UnknownDocumentError, find_cut
    from pipeline.storage.jobs import find_job

    engine, _ = database(settings(), output)
    job_id = find_job(engine, job).id if job is not None else None
    try:
        cut, others = find_cut(engine, document, job_id)
    except UnknownDocumentError as error:
        fail(visible(str(error)), USAGE)
    except NotCutError as error:
        fail(visible(str(error)), FAILURE)
    if json_:
        print_json(_json(cut))
        return
    _print(cut, None if all_ or not out.is_terminal else HEAD)
    if others:
        more = ", ..." if len(others) > OTHERS else ""
        named = ", ".join(others[:OTHERS])
        err.print(f"also in {len(others)} older job{'s' * (len(others) > 1)} (--job): {named}{more}", markup=False)


def _json(cut: Cut) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(cut), "removed": None if cut.kept is None else cut.removed}


def _print(cut: Cut, most: int | None) -> None:
    from pipeline.accounting.wording import visible

    for line in _head(cut):
        out.print(line, markup=False, soft_wrap=True)
    out.print()
    if cut.kept is None:
        print(visible(cut.compressed[:most]))
    else:
        _print_pieces(cut, most)
    length = len(cut.compressed if cut.kept is None else cut.text)
    if most is not None and length > most:
        err.print(f"the first {most:,} of {length:,} characters; --all shows the rest", markup=False)


def _head(cut: Cut) -> list[str]:
    from pipeline.accounting.wording import count, counted, percent, visible

    share = percent(cut.tokens_compressed, cut.tokens_original)
    tokens = f"{counted(cut.tokens_original, 'token')}, {count(cut.tokens_asked)} asked for"
    lines = [
        f"{visible(cut.doc_id)} in job {cut.job_id}, by {cut.method}",
        f"{tokens}, {count(cut.tokens_compressed)} kept ({share})",
    ]
    if cut.copied:
        fits = cut.tokens_asked >= cut.tokens_original  # the public library may overshoot
        return [*lines, "copied: the budget was no smaller than the prompt" if fits else "unchanged: nothing was cut"]
    if cut.kept is None:
        return [*lines, "no map of what was kept: this is the compressed prompt"]
    characters = sum(end - begin for begin, end in cut.removed)
    added = [] if cut.listed is None else [f"added: {visible(cut.compressed[slice(*cut.listed)].strip())}"]
    return [
        *lines,
        f"{count(characters)} of {counted(len(cut.text), 'character')} cut, at {counted(len(cut.removed), 'place')}",
        *added,
    ]


def _print_pieces(cut: Cut, most: int | None) -> None:
    """In colour where there are any to be had, else with marks around what was removed."""
    from rich.text import Text

    from pipeline.accounting.wording import visible

    pieces = cut.pieces(most)
    coloured = out.is_terminal and out.color_system is not None
    while some := list(islice(pieces, TOGETHER)):
        if coloured:
            styled = ((visible(text), KEPT if kept else REMOVED) for text, kept in some)
            out.print(Text.assemble(*styled), end="", soft_wrap=True)
        else:
            print("".join(visible(text) if kept else f"[-{visible(text)}-]" for text, kept in some), end="")
    print()
