"""Draw what a command shows on a terminal: python tests/pictures/draw.py OUT.svg FIRST LAST minigpt runs watch RUN --once

The command runs in a terminal of its own, 100 columns wide; the FIRST and LAST lines of what it writes there become an SVG
by rich's own export.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 100, 34


def output_of(command: list[str]) -> str:
    """Everything that `command` writes to a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    pieces = []
    try:
        while piece := os.read(terminal, 1 << 16):
            pieces.append(piece)
    except OSError:  # how Linux says that the other side has gone
        pass
    os.waitpid(pid, 0)
    return b"".join(pieces).decode("utf-8")


def draw(command: list[str], out: Path, first: int, last: int) -> None:
    """Write the SVG."""
    last_frame = re.split(r"\x1b\[\d*A", output_of(command))[-1]  # a live view draws itself again and again
    kept = re.sub(r"[^\n]*\r\x1b\[\d?K", "", last_frame)  # a line that says what is being done is erased when it is done
    text = re.sub(r"\x1b\[\??[0-9;]*[A-Zhl]", "", kept).replace("\r", "").rstrip()  # colours alone are kept
    lines = text.splitlines()
    if len(lines) > first + last:
        lines[first : len(lines) - last] = ["", "⋮", ""]
    text = "\n".join(lines)
    console = Console(width=COLUMNS, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(Text.from_ansi(f"\x1b[2m$\x1b[0m \x1b[1m{shlex.join(command)}\x1b[0m\n{text}"))
    svg = console.export_svg(title="minigpt")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # these would be fetched from elsewhere
    out.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw(sys.argv[4:], Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
