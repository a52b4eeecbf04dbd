"""Where the library stops with an exception."""

from __future__ import annotations


class Crash(Exception):  # noqa: N818 - it names what the library does; here nothing is wrong
    """The library raises at this point. Says why; the document gets ``fallback``'s text instead."""
