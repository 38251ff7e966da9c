"""Numbers as text for people, without markup and colour."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime


def count(n: int | float) -> str:
    """795,321 as 795 k, 10,700,000 as 10.7 M: three digits and a unit."""
    value, unit = _scaled(float(n), ("", "k", "M", "G", "T"))
    text = f"{value:.0f}" if not unit or value >= 99.95 else f"{value:.3g}"
    return f"{text} {unit}" if unit else text


def _scaled(value: float, units: Sequence[str]) -> tuple[float, str]:
    """`value` in the first of units, a thousand apart, in which it has at most three digits."""
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return value, unit
        value /= 1000
    return value, units[-1]


def duration(seconds: float) -> str:
    """1:04:09, 3:07 or 0:12; below ten seconds 4.2 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def checkpoint(which: str, step: int) -> str:
    """`best checkpoint, step 400`, or `checkpoint of step 2,000`."""
    return f"checkpoint of step {step:,}" if which.isdecimal() else f"{which} checkpoint, step {step:,}"


def loss(value: float | None) -> str:
    """A loss with four decimals; a dash if it was not finite."""
    return "-" if value is None else f"{value:.4f}"


def rate(value: float) -> str:
    """A learning rate: 3e-04, 1.5e-04, 0.003 as 3e-03."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def interval(ci95: tuple[float, float] | None) -> str:
    """A 95 % interval: 1.452–1.478."""
    return "" if ci95 is None else f"{ci95[0]:.3f}–{ci95[1]:.3f}"


def plus_minus(value: float, ci95: tuple[float, float] | None) -> str:
    """Half the width of an interval around `value`: ±0.013."""
    return "" if ci95 is None else f"±{max(ci95[1] - value, value - ci95[0]):.3f}"


def bar(share: float, width: int) -> str:
    """A bar of this share of `width` characters, to an eighth of one and at least that."""
    eighths = max(1, round(8 * width * share))
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def size(n_bytes: int | float) -> str:
    """1.5 MB."""
    value, unit = _scaled(float(n_bytes), ("bytes", "kB", "MB", "GB"))
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 99.95 else f"{value:.1f} {unit}"


def quoted(text: str) -> str:
    """`text` as one word of a command line, in double quotes if possible, which every shell understands."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def moment(created_at: str) -> str:
    """An ISO time as people write it, here: 22 Nov 2026, 01:03 (4 min ago); the text itself if it is not a time."""
    try:
        then = datetime.fromisoformat(created_at.replace("Z", "+00:00")).astimezone()
    except (ValueError, TypeError, OverflowError):
        return created_at
    return f"{then.day} {then:%b %Y, %H:%M} ({ago(created_at)})"


def ago(created_at: str) -> str:
    """An ISO time relative to now: 3 min ago; the text itself if it is not a time."""
    try:
        then = datetime.fromisoformat(created_at.replace("Z", "+00:00"))
        seconds = (datetime.now(UTC) - then).total_seconds()
    except (ValueError, TypeError):
        return created_at
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h"), (float("inf"), 86_400, "days")):
        if seconds < limit:
            return f"{max(0, seconds) / divisor:.0f} {unit} ago"
    raise AssertionError("unreachable")


def windows(stride: int, recent: int) -> str:
    """How a text was read to be scored."""
    read = f"windows slide by {stride} tokens" if stride else "consecutive windows"
    return read + (f", with the last {recent:,} tokens" if recent else "")


def parts_alone(n_answers: int | None, n_documents: int | None) -> str:
    """What follows the name of conversations of which the answers are scored, or of documents; empty for one text."""
    if n_documents is not None:
        return f", {n_documents:,} document{'s' * (n_documents != 1)} with their ends"
    return "" if n_answers is None else f", its {n_answers:,} answer{'s' * (n_answers != 1)} alone"
