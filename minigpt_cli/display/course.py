"""The screens of the course: at most 80 columns, plain lines off a terminal. Reading a line is here too."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from minigpt_cli.display import console, waiting
from minigpt_cli.escaping import printable

COLUMNS, ROWS = 80, 18
_COLOURS = {"heading": "1;36", "command": "1", "dim": "2", "good": "32", "": ""}

Lines = list[tuple[str, str]]
"""Lines of a screen, each with its style."""


@dataclass(frozen=True)
class Screen:
    """What is shown at once."""

    heading: str
    text: str = ""  # paragraphs with blank lines between them
    rows: Sequence[str] = ()  # shown as they are, such as a table
    options: Sequence[str] = ()  # numbered from 1
    command: str = ""
    footer: str = ""


def lines_of(screen: Screen, width: int) -> Lines:
    """The lines of a screen that is so wide."""
    lines: Lines = [(f"── {screen.heading} "[:width].ljust(width, "─"), "heading")]
    for number, paragraph in enumerate(filter(None, screen.text.strip().split("\n\n"))):
        lines += [("", "")] * bool(number) + [(line, "") for line in wrapped(paragraph, width)]
    if screen.rows:
        lines += [("", ""), *((part, "") for row in screen.rows for part in pieces(row, width))]
    lines += [("", "")] * bool(screen.options)
    for number, option in enumerate(screen.options, 1):
        lines += [(line, "") for line in wrapped(option, width, f"  {number}  ", "     ")]
    if screen.command:
        lines += [("", ""), *((line, "command") for line in command_lines(screen.command, width))]
    if screen.footer:
        lines += [("", ""), *((line, "dim") for line in wrapped(screen.footer, width))]
    return lines


def command_lines(command: str, width: int) -> list[str]:
    """A command in lines that can be pasted into a shell: broken between its words, never in a word or in quotes, which may be too long."""
    lines = [" "]
    for word in re.findall(r"""(?:"[^"]*"|'[^']*'|\S)+""", printable(command, keep="")):
        if len(f"{lines[-1]} {word} \\") > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {word}"
    return lines


def wrapped(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """`text` in lines of whole words; a longer word is cut."""
    flat = printable(" ".join(text.split()), keep="")
    return textwrap.wrap(flat, width, initial_indent=first, subsequent_indent=others, break_long_words=True, break_on_hyphens=False) or [""]


def pieces(row: str, width: int) -> list[str]:
    """A line as it is, in pieces where it is longer than the width."""
    flat = printable(row, keep="")
    return [flat[i : i + width] for i in range(0, max(1, len(flat)), width)]


def width() -> int:
    """The columns that are used."""
    if console.is_terminal(sys.stdout):
        with suppress(OSError):
            return max(40, min(COLUMNS, os.get_terminal_size(sys.stdout.fileno()).columns))
    return COLUMNS


def show(screen: Screen) -> None:
    """Print a screen."""
    waiting.remove()
    colour = console.use_colour(sys.stdout)
    for text, style in [("", ""), *lines_of(screen, width())]:
        code = _COLOURS[style] if colour else ""
        console.write(f"\x1b[{code}m{text}\x1b[0m" if code else text)


def show_command(command: str) -> None:
    """Print a command."""
    for line in command_lines(command, width()):
        console.write(line)


def show_rows(rows: Sequence[str]) -> None:
    """Print lines as they are."""
    for row in rows:
        console.write("\n".join(pieces(row, width())))


def say(text: str) -> None:
    """Print paragraphs."""
    for paragraph in text.strip().split("\n\n"):
        console.write("\n".join(wrapped(paragraph, width())))


def read(prompt: str = "> ") -> str:
    """A line that was typed, without its line end. Raises EOFError at the end of input, KeyboardInterrupt for Ctrl-C."""
    waiting.remove()
    if console.is_terminal(sys.stdin) and console.is_terminal(sys.stdout):
        with suppress(ImportError):  # gives input() history and editing; Windows does not have it
            import readline  # noqa: F401
        return input(prompt)
    console.write(prompt.rstrip())
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\r\n")
