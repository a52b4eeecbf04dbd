"""Take credentials out of text that goes into a report: URLs may carry them, and errors may quote URLs."""

from __future__ import annotations

import re
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^/?#\s\"']*@")
_PARAMETER = re.compile(
    r"(?i)((?:password|passwd|secret|(?:access|auth|session|security)[_-]?token|api[_-]?key|access[_-]?key|signature)[a-z_-]*=)[^&\s\"',;]+"
)
_KEY = re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}\b")


def redact(text: str) -> str:
    """The text without ``user:password@`` in URLs, secret parameters and API keys."""
    text = _USERINFO.sub("***@", text)
    return _KEY.sub("***", _PARAMETER.sub(r"\1***", text))


def redact_all(value: Any) -> Any:
    """``redact`` on every string of a JSON value."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(item) for item in value]
    return value
