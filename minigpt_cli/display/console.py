"""Where words go: results to stdout, progress, notices and errors to stderr. Light: rich is imported when something needs it.

Texts that a stranger may have written (names, notes, generated text, paths) pass through `printable` before they reach a
terminal, so that no escape sequence in them moves the cursor, retitles the window or hides what is there.
"""

from __future__ import annotations

import json
import math
import os
import sys
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_WIDTH = 400  # off a terminal nothing is folded: the reader is a file or a program


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at `stream`."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def use_colour(stream: TextIO) -> bool:
    """Whether colour may be written to `stream`."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with control characters (escape sequences, bells, bidirectional overrides) written out as \\x1b and the like."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or _harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _harmless(character: str) -> bool:
    category = unicodedata.category(character)
    return category not in {"Cc", "Cf", "Cs", "Zl", "Zp"} or character in "\u200c\u200d\ufeff\u00ad"  # joiners shape ordinary words


def one_line(text: str) -> str:
    """`text` on one line, safe to show."""
    return printable(" ".join(text.splitlines()).strip(), keep="")


def stdout() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console of progress and notices."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    width = None if is_terminal(stream) or "COLUMNS" in os.environ else _PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=False)


def write(text: str, end: str = "\n") -> None:
    """Print `text` to stdout as it is."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document to stdout; numbers that JSON cannot write (NaN, infinities) become null, what commands a terminal \\u009b."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    write(text if text.isprintable() else "".join(c if c == "\n" or _harmless(c) else json.dumps(c)[1:-1] for c in text))


def write_rows(text: str) -> None:
    """Print a table of CSV to stdout: to a program as it is, to a person without what commands a terminal."""
    write(printable(text) if is_terminal(sys.stdout) else text)


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def write_now(message: str) -> None:
    """Write a line to stderr past every buffer: for signal handlers, which may interrupt a print."""
    os.write(sys.stderr.fileno(), f"{message}\n".encode())


def notice(message: str) -> None:
    """Say something worth knowing on stderr, a line."""
    _say(message, "", "2")


def warn(message: str) -> None:
    """Say something that may be wrong on stderr, a line."""
    _say(message, "Warning: ", "33")


def error(message: str) -> None:
    """Say on stderr what went wrong, a line."""
    _say(message, "Error: ", "31")


def _say(message: str, label: str, colour: str) -> None:
    line = one_line(message)
    if not use_colour(sys.stderr):
        line = label + line
    elif label:
        line = f"\x1b[{colour}m{label}\x1b[0m{line}"
    else:
        line = f"\x1b[{colour}m{line}\x1b[0m"
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
