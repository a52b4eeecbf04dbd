"""What outlives a power cut. Apart from ``filesystem``, so that who only syncs need not import pyarrow."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's bytes last, or the names in a folder: a rename is only in memory until its folder is written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
