"""The commands that start jobs and change them: run, submit, resume, cancel, retry-dead."""

from __future__ import annotations

import typer

from pipeline.accounting.wording import counted
from pipeline.cli import interrupts
from pipeline.cli.fleet import Fleet
from pipeline.cli.shared import (
    EXIT_CODES,
    USAGE,
    DryRun,
    Input,
    JobFile,
    JobId,
    Json,
    Output,
    Sets,
    Workers,
    database,
    examples,
    fail,
    follow_up,
    out,
    parent,
    print_json,
    settings,
)

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "contextmill run examples/gsm8k.toml",
        "contextmill run job.toml -i corpus.jsonl --set stages.0.rate=0.3 --dry-run",
        then=EXIT_CODES,
    )
)
def run(
    job_file: JobFile,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Run a job on this machine from start to end; the same command again goes on, or only reports.

    Starts a Redis-compatible server (unless CONTEXTMILL_BROKER_URL names one) and local workers, and stops them again.
    """
    from pipeline.cli.ending import finish
    from pipeline.cli.running import check_broker, check_hosted, load, run_job

    spec, given = load(job_file, output, input_, sets), settings()
    if dry_run:
        from pipeline.cli.views import print_dry_run

        interrupts.say("interrupted")
        print_dry_run(spec, given, json_)
        return
    check_hosted(spec, given)
    check_broker(given)
    engine, opened = database(given, spec.output.path, migrate=True)
    with Fleet(opened, workers or given.workers) as fleet:
        job_id = run_job(engine, fleet, spec, json_)
    raise typer.Exit(finish(engine, job_id, json_))


@commands.command(epilog=examples("contextmill submit job.toml -o s3://bucket/runs"))
def submit(
    job_file: JobFile,
    output: Output = None,
    input_: Input = None,
    sets: Sets = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Hand a job to workers that run elsewhere (needs CONTEXTMILL_BROKER_URL), and return."""
    from dataclasses import asdict

    from pipeline.cli import running

    spec, given = running.load(job_file, output, input_, sets), settings()
    if given.broker_url is None:
        fail("submit needs CONTEXTMILL_BROKER_URL, as the workers have it; `contextmill run` works here alone", USAGE)
    running.check_broker(given)
    engine, opened = database(given, spec.output.path, migrate=True)
    with interrupts.in_order():  # a packed Parquet file is unpacked beside the system's other temporary files
        made = running.submit(engine, opened, spec, workers or given.workers, quiet=json_)
    if json_:
        print_json(asdict(made))
    else:
        word = "submitted" if made.created else "is there already"
        follow = follow_up("status --watch", made.job_id, f"{spec.output.path}/{made.job_id}")
        what = counted(made.documents, "document")
        out.print(f"job {made.job_id} {word}: {what}. {follow}", markup=False, soft_wrap=True)


@commands.command(epilog=examples("contextmill resume 3f2a", "contextmill resume 3f2a -o runs/night --workers 4"))
def resume(job: JobId, output: Output = None, workers: Workers = None, json_: Json = False) -> None:
    """Let a stopped or cancelled job go on from where it was; nothing is done or paid for twice.

    Without CONTEXTMILL_BROKER_URL it is worked on here, until it is done.
    """
    from pipeline.cli import running
    from pipeline.cli.ending import finish
    from pipeline.storage.jobs import find_job, resume_job

    engine, opened = database(settings(), output)
    row = find_job(engine, job)
    unread = running.cut_off(row)
    resumed = resume_job(engine, row.id)
    if not resumed and row.state == "done":
        if not json_:
            out.print(f"job {row.id} is done: nothing to resume")
        raise typer.Exit(finish(engine, row.id, json_))
    if opened.broker_url is None:
        with Fleet(opened, workers or opened.workers) as fleet:
            running.work_until_done(engine, fleet, row.id, parent(row.output), json_, unread=unread)
        raise typer.Exit(finish(engine, row.id, json_))
    if unread is not None:
        spec, identity = unread
        with interrupts.in_order():
            running.submit(engine, opened, spec, row.workers, quiet=json_, identity=identity)
    word = "goes on" if resumed else f"is {row.state}: nothing to resume"
    print_json({"job_id": row.id, "resumed": resumed}) if json_ else out.print(f"job {row.id} {word}")


@commands.command(epilog=examples("contextmill cancel 3f2a"))
def cancel(job: JobId, output: Output = None, json_: Json = False) -> None:
    """Stop a job; what is done stays, and `resume` goes on from there."""
    from pipeline.storage.jobs import cancel_job, find_job

    engine, _ = database(settings(), output)
    row = find_job(engine, job)
    cancelled = cancel_job(engine, row.id)
    word = "cancelled; its workers hand their shards back within seconds" if cancelled else f"is {row.state} already"
    print_json({"job_id": row.id, "cancelled": cancelled}) if json_ else out.print(f"job {row.id} {word}")


@commands.command("retry-dead", epilog=examples("contextmill retry-dead 3f2a"))
def retry_dead_command(job: JobId, output: Output = None, workers: Workers = None, json_: Json = False) -> None:
    """Try the dead documents of a job again (those that failed by no fault of their own)."""
    from pipeline.cli.ending import finish
    from pipeline.cli.running import work_until_done
    from pipeline.storage.jobs import find_job, retry_dead

    engine, opened = database(settings(), output)
    row = find_job(engine, job)
    count = retry_dead(engine, row.id, opened.max_attempts)
    interrupts.say(f"interrupted; {follow_up('resume', row.id, row.output)} goes on from here")
    if not json_:
        said = f"{counted(count, 'dead document')} tried again" if count else "no dead documents"
        out.print(f"job {row.id}: {said}")
    if count and opened.broker_url is None:
        with Fleet(opened, workers or opened.workers) as fleet:
            work_until_done(engine, fleet, row.id, parent(row.output), json_)
        raise typer.Exit(finish(engine, row.id, json_))
    if json_:
        print_json({"job_id": row.id, "retried": count})
