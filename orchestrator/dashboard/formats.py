"""How the page writes amounts, instants and durations; always UTC, so that a page is repeatable."""

from __future__ import annotations

from datetime import datetime, timedelta

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
NOTHING = "–"


def write_usd(usd: float) -> str:
    """Write an amount in cents, or exactly (millionths) where cents would hide it."""
    return f"${usd:,.2f}" if usd == 0 or abs(usd) >= 0.01 else write_exact_usd(usd)


def write_exact_usd(usd: float) -> str:
    """Write an amount to the millionth, as the bill counts."""
    return f"${usd:,.6f}"


def write_share(share: float) -> str:
    """Write a fraction as a percentage; what is there never reads as nothing."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def write_saving(share: float) -> str:
    """Write a saved fraction; a negative one is what is dearer."""
    return write_share(share) if share >= 0 else f"{-share:.0%} dearer"


def write_seconds(seconds: float) -> str:
    """Write a duration: 0.4 s, 44.9 s, 3 min 10 s, 2 h 05 min, 1 d 06 h."""
    if 0 < seconds < 0.05:
        return "<0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    if whole < 2 * _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02d} h"


def write_duration(duration: timedelta) -> str:
    """Write a duration as `write_seconds` does."""
    return write_seconds(duration.total_seconds())


def write_instant(instant: datetime | None) -> str:
    """Write an instant to the second."""
    return NOTHING if instant is None else f"{instant:%Y-%m-%d %H:%M:%S}"


def write_bytes(num_bytes: int) -> str:
    """Write a size in decimal units."""
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def write_number(number: float) -> str:
    """Write a tick or a setting without needless digits."""
    return f"{number:,.12g}" if abs(number) < 1e12 else f"{number:.6g}"


def write_words(name: str) -> str:
    """Write an enum's value as words: lost_work becomes lost work."""
    return name.replace("_", " ")
