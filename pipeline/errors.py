"""Which exceptions are messages to a person, and how they read. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


def explain(error: Exception) -> tuple[str, bool] | None:
    """(message, whether it is a usage error) of an error a person can act on; None for any other."""
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    from pipeline.accounting.prices import PricesMissing, PriceTableError
    from pipeline.accounting.report import ReportMissing
    from pipeline.accounting.summary import NoSuchJob
    from pipeline.evaluation.comparing import NothingToCompareError
    from pipeline.jobfile import JobFileError
    from pipeline.models import ModelError
    from pipeline.opening import reason
    from pipeline.producer import SubmissionStoppedError
    from pipeline.stages import Halt
    from pipeline.storage.filesystem import PathError
    from pipeline.storage.jobs import JobStateError, UnknownJobError
    from pipeline.storage.parts import FULL
    from pipeline.storage.readers import InputError
    from pipeline.storage.sql import DatabaseError

    usage = JobFileError, UnknownJobError, JobStateError, NoSuchJob, PathError, NothingToCompareError
    if isinstance(error, usage):
        return str(error), True
    if isinstance(error, ValidationError):  # of the settings: CONTEXTMILL_* variables
        found = error.errors(include_input=False)
        return "; ".join(_setting(e["loc"], e["msg"].removeprefix("Value error, ")) for e in found), True
    ours = InputError, ModelError, Halt, DatabaseError, SubmissionStoppedError
    missing = PricesMissing, PriceTableError, ReportMissing
    if isinstance(error, (*ours, *missing)) or type(error).__module__.partition(".")[0] == "workers":
        return str(error), False
    if isinstance(error, SQLAlchemyError):
        return f"database: {reason(error)}", False
    if isinstance(error, OSError):
        room = "; make room there, then give the same command again" if error.errno in FULL and error.filename else ""
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{room}", False
    return None


def _setting(loc: tuple[int | str, ...], said: str) -> str:
    return f"CONTEXTMILL_{str(loc[0]).upper()}: {said}" if loc else said  # of two settings at once: it names them
