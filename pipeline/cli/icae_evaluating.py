"""The command `icae evaluate`: what an encoder's slots hold of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.fleet import Fleet
from pipeline.cli.icae_answering import Answers, Summaries
from pipeline.cli.judging import Judge, Most
from pipeline.cli.shared import (
    EXIT_CODES,
    FAILURE,
    USAGE,
    Column,
    Continuations,
    Input,
    Json,
    Output,
    Refine,
    Workers,
    database,
    err,
    examples,
    fail,
    out,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from pipeline.cli.icae_answering import Plan, Told
    from pipeline.memory.evaluated import Asked, Evaluation
    from pipeline.memory.form import Form
    from pipeline.models.encoders import EncoderManifest
    from schemas.settings import Settings

commands = typer.Typer()

Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--texts", "-t", metavar="[KIND=]PATH",
        help="Texts that it has not learned from, and of what kind; may be given several times.",
    ),
]  # fmt: skip

Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind", metavar="NAME",
        help="Measure this kind, of --texts or numbers, patterned, random; may be given several times. Default: all.",
    ),
]  # fmt: skip


@commands.command(
    epilog=examples(
        "contextmill icae evaluate night --texts prose=held-out.jsonl --texts code=src.jsonl",
        "contextmill icae evaluate night -t books.txt --tokens 128 --tokens 512 --ratio 4 --ratio 8",
        "contextmill icae evaluate night -t books.txt --kind books --precision float16 --precision int4/32",
        "contextmill icae evaluate night -t books.txt --html night.html",
        "contextmill icae evaluate night --answers examples/memory.toml --judge examples/judge.toml",
        then=EXIT_CODES,
    )
)
def evaluate(
    encoder: Annotated[str, typer.Argument(help="An encoder's name, or its folder.", metavar="ENCODER")],
    texts: Texts = None,
    column: Column = None,
    kind: Kinds = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option("--tokens", min=2, help="Of a context; may be given several times. Default: as it was trained."),
    ] = None,
    ratio: Annotated[
        list[float] | None,
        typer.Option("--ratio", min=1, help="Tokens a slot; may be given several times. Default: as it was trained."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=2, help="Contexts of each kind, length and ratio.")] = 64,
    starts: Annotated[
        bool, typer.Option("--starts", help="Contexts are the first tokens of texts. Default: from anywhere in them.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="FORM",
            help="How slots are stored: float16, int8, int4, int8/32, int4/32 (in groups of 32, not 64); may be given "
            "several times. Default: float16, int8, int4.",
        ),
    ] = None,
    refine: Refine = 0,
    continuations: Continuations = 0,
    continued: Annotated[int, typer.Option("--continued", min=2, help="Tokens that follow a context.")] = 64,
    base: Annotated[str | None, typer.Option("--base", help="Where the model is that it was trained for.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: what there is.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the passes over texts: float32 or bfloat16.")] = "float32",
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Most tokens of a pass.")] = 16_384,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of which contexts are drawn.")] = 0,
    answers: Answers = None,
    input_: Input = None,
    summaries: Summaries = None,
    judge: Judge = None,
    most: Most = None,
    output: Output = None,
    workers: Workers = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write tables and plots as one HTML file.")] = None,
    json_: Json = False,
) -> None:
    """Measure what an encoder's slots hold of texts, of numbers, and of what no text is like.

    - what comes back of a context: BLEU-4, the share before the first wrong
      token, the share of tokens that were the likeliest, nats a token;
      from slots as they come out of the slot store, by how they are stored
    - perplexity of what follows: behind nothing, the text, as many of its
      last tokens as there are slots, and the slots (kept: their share)
    - seconds to encode a context, and to read its slots or its text
    - with --answers: what questions are answered from slots, beside answers
      from all of the text, from as many tokens of it (cut off, a summary,
      LLMLingua) and from nothing, by the metrics of its evaluate stage and,
      with --judge, by a model that reads each two in both orders

    Contexts longer than the spans of its training are cut into such spans.
    Ctrl-C ends it with what is measured of texts by then, said to be unfinished.
    Without --texts and --kind, --answers alone is done, by jobs that go on
    where they were stopped.
    """
    from dataclasses import replace

    from pipeline.memory.evaluated import Asked, Evaluation, check
    from pipeline.memory.fit import Fit
    from pipeline.models import encoders, resolve
    from pipeline.models.folder import window_of

    if dtype not in ("float32", "bfloat16"):
        fail(f"--dtype {dtype}: float32 or bfloat16", USAGE)
    files, given = _files(texts or []), settings()
    _check_kinds(kind or [], files)
    if answers is None and (summaries or judge or most or input_):
        fail("--judge, --most, --summaries and --input are about answers: name questions by --answers", USAGE)
    if column and not files:
        fail("--column is of --texts: name some", USAGE)
    if answers is not None and refine:
        fail(f"--refine is of what is measured of texts: {answers} may say refine in its encode stage", USAGE)
    if continuations and not refine:
        fail("--continuations are of what slots are fitted to: say --refine, in how many steps", USAGE)
    folder = encoders.find(encoder, given.cache)
    manifest = encoders.read_manifest(folder)
    learned = manifest.figures
    asked = Asked(
        tokens=tuple(tokens or [learned.tokens]), ratios=tuple(ratio or [learned.ratio]),
        span=learned.tokens, rows=rows, continued=continued, batch_tokens=batch_tokens, half=dtype == "bfloat16",
        seed=seed, forms=_forms(precision or ["float16", "int8", "int4"]), fit=Fit(refine, continuations),
        starts=starts,
    )  # fmt: skip
    model = base or manifest.base
    check(asked, window_of(resolve(model, given).folder), manifest.spec["slots"])
    curve = _curve(folder, html) if html else []
    told = None
    if answers is not None:
        from pipeline.cli.icae_answering import plan

        with interrupts.in_order():
            planned = plan(encoder, base, ratio, device, (answers, summaries, judge), output, input_, most, given)
        told = _answered(planned, workers, json_, given)
    with interrupts.in_order():
        found = Evaluation()
        if files or kind or not told:
            found = _evaluated(encoder, model, device, asked, files, column, kind, given)
        if not (found.measured or told):
            interrupts.check()  # there is nothing to tell
        found = replace(found, answers=told.found if told else None)
        _tell(found, encoder, manifest, json_, told)
        if html is not None:  # last: what was measured is told, even where no file can be written
            _write(html, found, manifest, encoder, curve)
            if not json_:
                out.print(f"report: {html}", soft_wrap=True, markup=False)
    wanted = {name for name in files if name in (kind or files)} or {one for one, _ in found.short}
    if wanted and not wanted & {one.kind for one in found.repeated}:
        fail(f"no text of {', '.join(sorted(wanted))} is long enough: give longer ones, or fewer --tokens", FAILURE)
    if told and told.code:
        raise typer.Exit(told.code)


def _answered(planned: Plan, workers: int | None, json_: bool, given: Settings) -> Told:
    """First of all: its jobs go on where they were stopped, and what is measured here would be measured again."""
    from pipeline.cli.icae_answering import Answering

    questions = planned.questions
    if questions.left_out and not json_:
        said = f"{counted(questions.left_out, 'row')} left out, the first: {questions.first}"
        out.print(said, markup=False, soft_wrap=True)
    engine, opened = database(given, planned.job.output.path, migrate=True)
    with Fleet(opened, workers or given.workers) as fleet:
        return Answering(engine, fleet, json_, "answers", planned).run()


def _files(texts: list[str]) -> dict[str, list[str]]:
    """Kind -> paths; a path without a kind is its own."""
    from pipeline.memory.kinds import GENERATED

    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        kind = name if equals else Path(text).name.split(".")[0]
        if not kind or (equals and not path):
            fail(f"--texts {text}: KIND=PATH, or a path", USAGE)
        if kind in GENERATED:
            fail(f"--texts {text}: {kind} are made up here; call yours otherwise, as KIND=PATH", USAGE)
        found.setdefault(kind, []).append(path if equals else text)
    return found


def _check_kinds(asked: list[str], files: dict[str, list[str]]) -> None:
    from pipeline.memory.kinds import names

    there = names(files)
    for name in asked:
        if name not in there:
            fail(f"--kind {name}: there is none; there are {', '.join(there)}", USAGE)


def _forms(names: list[str]) -> tuple[Form, ...]:
    from pipeline.memory.form import FORMS

    for name in names:
        if name not in FORMS:
            fail(f"--precision {name}: {', '.join(FORMS)}", USAGE)
    return tuple(FORMS[name] for name in dict.fromkeys(names))


def _evaluated(
    encoder: str, model: str, device: str, asked: Asked, files: dict[str, list[str]], column: str | None,
    kind: list[str] | None, given: Settings,
) -> Evaluation:  # fmt: skip
    from pipeline.display import measuring
    from pipeline.memory.encoder import load_encoder
    from pipeline.memory.evaluating import evaluate as evaluate_
    from pipeline.memory.kinds import kinds
    from pipeline.models import ModelPool, load_tokenizer

    tokenizer = load_tokenizer(model, given)
    pool = ModelPool(device, settings=given)
    coder = load_encoder(encoder, pool, model, "bfloat16" if asked.half else "float32", device, given)
    of = kinds(files, tokenizer, coder.embed.weight.shape[0], asked.seed, kind or None, column)
    with measuring(err) as shown:

        def told(done: int, total: int, what: str) -> None:
            interrupts.check()
            shown(done, total, what)

        parts = evaluate_(coder, tokenizer, of, asked, told)
        found = next(parts)
        with interrupts.so_far():
            for more in parts:  # each holds those before it: the last is all there is
                found = more
    return found


def _curve(folder: Path, html: Path) -> list[tuple[int, float]]:
    """The curve that the report shows, and whether there is a place for it: asked before hours of measuring."""
    from pipeline.memory.encoder import read_curve
    from pipeline.places import check_place

    check_place(html)
    return read_curve(folder)


def _write(
    html: Path, found: Evaluation, manifest: EncoderManifest, encoder: str, curve: list[tuple[int, float]]
) -> None:
    from pipeline.accounting.report import render_encoder
    from pipeline.reporting import write_whole

    write_whole(html, render_encoder(found, encoder, manifest, curve).encode())


def _tell(found: Evaluation, encoder: str, manifest: EncoderManifest, json_: bool, told: Told | None) -> None:
    if json_:
        said = {"encoder": encoder, "base": manifest.base, "sha256": manifest.sha256, **found.to_json()}
        print_json(said | ({"jobs": told.jobs} if told else {}))
        return
    from pipeline.memory.display import print_evaluation

    print_evaluation(found, out)
