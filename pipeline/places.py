"""Whether a file can be written, asked before the hours of work whose result goes into it."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.stages import Halt


def check_place(to: Path) -> None:
    """Raises ``Halt`` where no file called ``to`` can be written. What lies there stays as it is."""
    if to.is_dir():
        raise Halt(f"{to} is a folder: name a file")
    tried = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        tried.touch(exist_ok=False)
        tried.unlink()
    except OSError as error:
        raise Halt(
            f"{to} cannot be written ({error.strerror}): name a file in a folder that is there, and may be written to"
        ) from error
