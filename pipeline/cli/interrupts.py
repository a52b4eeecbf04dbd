"""Ctrl-C and SIGTERM: one line and exit code 1, whatever the command is doing; never a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

TYPE_CHECKING = False  # typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

EXIT = 1
SIGNALS = signal.SIGINT, signal.SIGTERM
GOES_ON = "run", "submit", "resume", "align", "distill", "icae"
ONCE = ["icae", "evaluate"], ["icae", "reconstruct"]
BY_JOBS = "--answers", "--judge"  # of what is done once, and of `compare`, what goes on
SHOW_CURSOR = b"\r\x1b[K\x1b[?25h"  # behind a progress display, which hides it


class Interrupted(BaseException):
    """Stop now. Not KeyboardInterrupt: typer would exit without a word."""


class _State:
    """What a signal handler reads and writes."""

    line = "interrupted"
    raised = False


def goes_on(words: list[str]) -> bool:
    """Whether the command of these words, given again, does not begin anew."""
    if any(word.partition("=")[0] in BY_JOBS for word in words):
        return True
    return any(word in words[:1] for word in GOES_ON) and words[:2] not in ONCE


def leave_at_once() -> None:
    """From now on a signal ends the process: nothing has been started that would have to be stopped."""
    _State.line = "interrupted; the same command goes on from here" if goes_on(sys.argv[1:]) else "interrupted"
    _catch(_leave)


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Inside, the first signal raises ``Interrupted`` in the main thread, so that what was started is stopped on the
    way out; a second one ends the process. Not for imports: libraries swallow what is raised in them.
    """
    before, sys.unraisablehook = sys.unraisablehook, _unraisable
    _catch(_raise)
    try:
        yield
        check()
    except Exception:  # an exit code, too
        check()
        raise
    finally:
        _catch(_leave)
        sys.unraisablehook = before


@contextlib.contextmanager
def so_far() -> Iterator[None]:
    """Within ``in_order``, around what is worth something unfinished: the first signal ends what is done inside, and
    what stands behind it is still done, up to the end of ``in_order``, which raises. Inside, ``check`` is to be called
    now and then."""
    before, sys.unraisablehook = sys.unraisablehook, _raised_again
    try:
        yield
    except Interrupted:
        pass
    except Exception:
        if not raised():  # Python makes some into a RuntimeError
            raise
    finally:
        sys.unraisablehook = before


def check() -> None:
    """Raise ``Interrupted`` once more, where a library swallowed it: to be called now and then in long work."""
    if _State.raised:
        raise Interrupted


def ignore() -> None:
    """From now on signals are too late: the command has said how it ended."""
    _catch(signal.SIG_IGN)


def say(text: str) -> None:
    """What an interrupted command says from now on."""
    _State.line = text


def line() -> str:
    """What an interrupted command says."""
    return _State.line


def raised() -> bool:
    """Whether an ``Interrupted`` is behind whatever error came out: Python makes some into a RuntimeError."""
    return _State.raised


def _catch(handler: Callable[[int, Any], object] | signal.Handlers) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` and a script's `&` mean it
            signal.signal(number, handler)


def _raise(number: int, frame: Any) -> None:
    _catch(_leave)
    _State.raised = True
    raise Interrupted


def _leave(number: int, frame: Any) -> None:
    _end()


def _end() -> None:
    """Leave as if killed, which loses nothing: workers of this run notice, and a job goes on from what is committed."""
    os.write(2, (SHOW_CURSOR if sys.stderr.isatty() else b"") + _State.line.encode() + b"\n")
    os._exit(EXIT)


def _unraisable(found: Any) -> None:
    """An interrupt raised where nothing can be raised (the callback of a weak reference) would be lost."""
    if found.exc_type is Interrupted:
        _end()
    sys.__unraisablehook__(found)


def _raised_again(found: Any) -> None:
    """The same, where ``check`` raises it once more."""
    if found.exc_type is not Interrupted:
        sys.__unraisablehook__(found)
