"""Figures as people read them, for the terminal and the HTML report alike. ``None`` reads "unknown", never 0."""

from __future__ import annotations

from datetime import UTC, datetime

UNKNOWN = "unknown"
MINUS = "\N{MINUS SIGN}"


def money(microusd: int | None) -> str:
    """Dollars from micro-dollars, with as many digits as the amount deserves: $1,234.50, $0.0421, $0.000812."""
    if microusd is None:
        return UNKNOWN
    size = abs(microusd)
    digits = 2 if size >= 1_000_000 or size == 0 else 4 if size >= 10_000 else 6
    return f"{MINUS if microusd < 0 else ''}${size / 1e6:,.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """So many of what, thousands apart: 1 document, 1,204 documents."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds as 0.42 s, 12.3 s, 4 min 05 s or 3 h 20 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def percent(part: float, whole: float) -> str:
    """A share as 48.3 %; a dash where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def points(value: float | None) -> str:
    """A score from 0 to 1 in points of 100, as papers print it; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}".replace("-", MINUS)


def span(low: float | None, high: float | None) -> str:
    """An interval of scores in points of 100."""
    return "–" if low is None or high is None else f"{points(low)} to {points(high)}"


def ratio(value: float | None) -> str:
    """How many times shorter: 4.9x; a dash where nothing was shortened."""
    return "–" if value is None else f"{value:.1f}x"


def size(value: int | None) -> str:
    """Bytes as 4.1 KiB, 3.2 GiB."""
    if value is None:
        return UNKNOWN
    amount, units = float(value), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:,.0f} {units[0]}" if units[0] == "bytes" else f"{amount:,.1f} {units[0]}"


def moment(seconds: float | None) -> str:
    """A time of the database's clock as 2026-11-22 16:04:09 UTC; a dash where it has not come."""
    return "–" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def amount(value: float | None, unit: str) -> str:
    """A figure of an estimate in its unit: seconds, microusd, or a count."""
    if unit == "seconds":
        return duration(value)
    return money(None if value is None else round(value)) if unit == "microusd" else count(value)


def visible(text: str) -> str:
    """The text with control characters made visible: a terminal would obey them, HTML and XML may not hold them."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


_VISIBLE = {
    **{point: chr(0x2400 + point) for point in range(0x20) if chr(point) not in "\n\t"},
    0x7F: "\u2421",
    **{point: f"\\x{point:02x}" for point in range(0x80, 0xA0)},
}
