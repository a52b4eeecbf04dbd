"""The HTML report as a file: beside a job's data, or wherever the user wants it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sqlalchemy import Engine, delete, insert

from pipeline.accounting.report import render_html
from pipeline.accounting.summary import summarise
from pipeline.cuts import typical_cuts
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.jobs import find_job
from schemas.tables import Artifact


def write_report(engine: Engine, job_id: str, to: Path | None = None) -> str:
    """Write the report to ``to``, or as ``report.html`` into the job's folder and its artifacts; returns where it is.

    Raises ``ReportMissing`` where the packages for it are not installed.
    """
    html = render_html(summarise(engine, job_id), typical_cuts(engine, job_id)).encode()
    if to is not None:
        write_whole(to, html)
        return str(to)
    place = f"{find_job(engine, job_id).output}/report.html"
    fs, path = resolve_path(place)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    with fs.open_output_stream(path) as file:
        file.write(html)
    row = {"job_id": job_id, "name": "report", "path": place, "created_at": time.time()}
    with engine.begin() as connection:
        connection.execute(delete(Artifact).where(Artifact.job_id == job_id, Artifact.name == "report"))
        connection.execute(insert(Artifact), [row])
    return place


def write_whole(to: Path, content: bytes) -> None:
    """Write a file whole or not at all: an older one stays. Raises ``OSError`` with the user's name for it."""
    building = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        building.write_bytes(content)
        building.replace(to)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(to)) from error
    finally:
        building.unlink(missing_ok=True)
