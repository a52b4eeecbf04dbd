"""The command `contextmill`: the one front door. Puts the parts together; nothing imports it.

``app`` collects the commands: ``jobs`` starts and changes jobs, ``views`` shows them, ``machine`` is about this
machine. ``running`` takes a job from its file to its end with the workers of a ``fleet``, ``ending`` says how it
ended. Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os

from pipeline.cli import interrupts


def main() -> None:
    """Run the command; an error a person can act on is one sentence, not a traceback."""
    interrupts.leave_at_once()  # before all else: the imports take longest, and Ctrl-C may come while they run
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own pool holds 20 MB more, at the same speed
    from pipeline.cli.app import call

    call()
