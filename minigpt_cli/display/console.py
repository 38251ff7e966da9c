"""Output: results to stdout; progress, notices and errors to stderr. rich is imported only when it is needed.

Text from other people (names, notes, generated text, paths) goes through `printable` or `one_line` (escaping.py) before a terminal
shows it.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from minigpt_cli.display import waiting
from minigpt_cli.escaping import json_text, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

    from minigpt_cli.events import Event

Advance = Callable[[str, float, float | None], None]
"""Called with the name of the work, the amount done, and the total amount (None: not known)."""

_WARNING = "Warning: "
_LABEL = re.compile(r"\w+ {2,}")  # before a notice, such as `text        `
_PLAIN_WIDTH = 400  # in a pipe lines are not wrapped: a file or a program reads them


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that understands control sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def use_colour(stream: TextIO) -> bool:
    """Whether colour may be written to `stream`."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def stdout() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console of progress and notices."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    waiting.remove()
    from rich.console import Console

    width = None if is_terminal(stream) or "COLUMNS" in os.environ else _PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=False)


def write(text: str, end: str = "\n") -> None:
    """Print `text` to stdout unchanged."""
    waiting.remove()
    sys.stdout.write(text + end)
    sys.stdout.flush()


def write_labelled(label: str, text: str, width: int = 7) -> None:
    """Print `text`, one line, to stdout behind a label of at most `width` characters; a terminal gets it in lines of whole words."""
    write_wrapped(f"{label:<{width}} {one_line(text)}", " " * (width + 1))


def write_wrapped(line: str, indent: str = "") -> None:
    """Print `line` to stdout; a terminal gets it in lines of whole words, each but the first with `indent`."""
    write(_in_whole_words(line, sys.stdout, indent))


def _in_whole_words(line: str, stream: TextIO, indent: str) -> str:
    """`line` in lines of whole words where a terminal shows it; each but the first begins with `indent`."""
    if not is_terminal(stream):
        return line
    width = 80  # where the terminal does not say how wide it is
    with suppress(OSError, ValueError):
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns or width)
    return textwrap.fill(line, max(30, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document to stdout; NaN and infinities become null, control characters \\u009b."""
    write(json_text(json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)))


def write_event(event: Event) -> None:
    """Print an event as a line of JSON."""
    write_json({"event": event.event, **event.model_dump(mode="json")}, indent=None)


def write_rows(text: str) -> None:
    """Print CSV to stdout: unchanged to a program, without control characters to a terminal."""
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
    """Write a line to stderr without a buffer, for signal handlers, which may interrupt a print."""
    waiting.remove()
    try:
        os.write(sys.stderr.fileno(), f"{message}\n".encode())
    except OSError:  # a notebook's stderr has no descriptor
        sys.stderr.write(f"{message}\n")


def notice(message: str) -> None:
    """Print a notice to stderr, one line; one that begins with "Warning: " is printed as `warn` prints it."""
    if message.startswith(_WARNING):
        warn(message.removeprefix(_WARNING))
    else:
        _print_line(message, "", "2")


def warn(message: str) -> None:
    """Print a warning to stderr, one line."""
    _print_line(message, _WARNING, "33")


def error(message: str) -> None:
    """Print an error to stderr, one line."""
    _print_line(message, "Error: ", "31")


def _print_line(message: str, label: str, colour: str) -> None:
    waiting.remove()
    line = label + one_line(message)
    begins = _LABEL.match(line)
    line = _in_whole_words(line, sys.stderr, " " * (begins.end() if begins else 2))
    if use_colour(sys.stderr):
        coloured = label or line
        line = f"\x1b[{colour}m{coloured}\x1b[0m{line.removeprefix(coloured)}"
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def progress(start: str = "", *, in_bytes: bool = False, quiet: bool = False) -> Iterator[Advance]:
    """Show a progress bar on stderr during a `with` block: from the first call on, until then `start`. `quiet` shows nothing."""
    if quiet or not is_terminal(sys.stderr):
        yield _announced_once(quiet)
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    bar_column = BarColumn(style="bright_black", complete_style="cyan", finished_style="green")
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), bar_column, amount, TimeRemainingColumn())
    bar = Progress(*columns, console=stderr(), transient=True)
    task = bar.add_task("", total=None)
    if start:
        waiting.show(start)

    def advance(what: str, done: float, total: float | None) -> None:
        waiting.remove()
        bar.update(task, description=one_line(what), completed=done, total=total)
        bar.start()

    try:
        yield advance
    finally:
        waiting.remove()
        bar.stop()


def _announced_once(quiet: bool) -> Advance:
    said: set[str] = set()

    def advance(what: str, done: float, total: float | None) -> None:
        if not quiet and what not in said:
            said.add(what)
            notice(what)

    return advance
