"""Types of the values in files, each with its range; all records read from disk use them. No torch.

A run directory may come from anywhere. A value outside these ranges is refused when its file is read, so that other code need not handle
counts with four hundred digits, losses that overflow when they are squared, or invalid times.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

COUNT_LIMIT = (1 << 63) - 1
NATS_LIMIT = 1e12  # the loss of a confident wrong model is as large as its logits; sums and squares of this limit do not overflow
SECONDS_LIMIT = 1e10  # three centuries
FIGURE_LIMIT = 1e39  # more than the largest float32
_YEARS = range(1970, 3000)  # datetime does not overflow in these


_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|d)?\s*$")
_SECONDS = {None: 1.0, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _parse_duration(value: Any) -> Any:
    """Seconds from `90`, `90s`, `3m` or `1.5h`; pydantic refuses anything else."""
    if isinstance(value, str):
        if not (match := _DURATION.match(value)):
            raise ValueError(f"{value!r} is not a duration: write 90s, 3m or 1.5h")
        return float(match[1]) * _SECONDS[match[2]]
    return value


Duration = Annotated[float, BeforeValidator(_parse_duration)]
"""A non-negative number of seconds; on the command line also `90s`, `3m`, `1.5h`."""


def _bounded(limit: float) -> BeforeValidator:
    """A validator that replaces a number that is not finite, or larger than `limit`, by None."""

    def check(value: Any) -> Any:
        return None if isinstance(value, int | float) and not abs(value) <= limit else value

    return BeforeValidator(check)


def _in_utf8(value: Any) -> Any:
    try:
        if isinstance(value, str):
            value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 (it holds half of a surrogate pair)") from None
    return value


def _moment(value: str) -> str:
    """An ISO 8601 time with its zone, in UTC; '' if it is unknown."""
    if not value:
        return value
    try:
        then = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("is not a time (ISO 8601)") from None
    if then.tzinfo is None or then.year not in _YEARS:
        raise ValueError(f"is not a time with its zone, in the years {_YEARS.start} to {_YEARS.stop - 1}")
    return value if value.endswith("Z") else then.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _one_or_several(sources: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """One source as a string, however it was given."""
    return sources if isinstance(sources, str) or len(sources) > 1 else sources[0] if sources else ""


def _as_tuple(patterns: Any) -> Any:
    """One pattern, as an environment variable gives it, among several."""
    return (patterns,) if isinstance(patterns, str) else patterns


def _text_encoding(name: str) -> str:
    """The name of an encoding that Python knows. Raises ValueError."""
    try:
        b"    ".decode(name or "utf-8")
    except UnicodeError:  # an encoding, in which this is no text
        pass
    except (LookupError, ValueError):
        raise ValueError(f"{name!r} is not an encoding that Python knows: write one such as cp1252, cp1251, shift_jis or gb18030") from None
    return name


Count = Annotated[int, Field(ge=0, le=COUNT_LIMIT)]
"""A number of things."""
Nats = Annotated[float, Field(ge=-NATS_LIMIT, le=NATS_LIMIT)]
"""A loss, or an end of its interval."""
MaybeNats = Annotated[float | None, _bounded(NATS_LIMIT)]
"""A loss, or None where it was not finite (JSON has no NaN) or absurdly large."""
MaybeFigure = Annotated[float | None, _bounded(FIGURE_LIMIT)]
"""Any other measured number, or None where it was not finite."""
Figure = Annotated[float, Field(ge=-FIGURE_LIMIT, le=FIGURE_LIMIT)]
"""Any other measured number."""
Seconds = Annotated[float, Field(ge=0, le=SECONDS_LIMIT)]
"""A length of time."""
Moment = Annotated[str, Field(max_length=40), AfterValidator(_moment)]
"""A point in time: ISO 8601 with its zone, kept in UTC; '' if it is unknown."""
Line = Annotated[str, Field(max_length=4096), BeforeValidator(_in_utf8)]
"""A name, a path, a label."""
Text = Annotated[str, Field(max_length=1 << 17), BeforeValidator(_in_utf8)]
"""A longer text, such as a command line or a note."""

OneOrSeveral = Annotated[Line | tuple[Line, ...], AfterValidator(_one_or_several)]
"""One line as a string, several as a tuple."""
Lines = Annotated[tuple[Line, ...], BeforeValidator(_as_tuple)]
"""Any number of lines; one may be given as a string."""
Encoding = Annotated[Line, AfterValidator(_text_encoding)]
"""The name of an encoding; empty: none is named."""


def line(text: str) -> str:
    """`text` as it can be recorded: invalid Unicode (a file name in another encoding) is replaced, and the length is that of a `Line`."""
    return text.encode("utf-8", "replace").decode("utf-8")[:4096]
