"""A command line on a terminal of a chosen size, and what it writes there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class OnTerminal(NamedTuple):
    """What a command wrote, and how it ended."""

    text: str  # with its control sequences
    first_s: float  # seconds until something could be seen
    code: int | None  # None: it was killed after `until` was seen


def run_on_terminal(
    arguments: Sequence[str],
    cwd: Path,
    *,
    width: int = 80,
    height: int = 24,
    press: Mapping[str, bytes] | None = None,
    until: str = "",
    seconds: float = 60.0,
) -> OnTerminal:
    """Run `minigpt ARGUMENTS` on a terminal. When a text of `press` is seen, its keys are pressed; the process is killed when `until`
    is seen. Raises TimeoutError."""
    keys, seen, first_s, began = dict(press or {}), b"", 0.0, time.monotonic()
    pid, terminal = pty.fork()
    if not pid:
        try:
            os.chdir(cwd)
            # Not the environment of C, in which readline, loaded by pytest, has set COLUMNS and LINES.
            environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
            environment["TERM"] = "xterm-256color"
            os.execve(sys.executable, [sys.executable, "-m", "minigpt_cli", *arguments], environment)
        finally:
            os._exit(127)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    try:
        while not (until and until.encode() in seen):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"after {seconds} s: {seen[-2000:]!r}")
            if not select.select([terminal], [], [], 0.05)[0]:
                continue
            try:
                piece = os.read(terminal, 1 << 16)
            except OSError:  # Linux says so at the end
                piece = b""
            if not piece:
                return OnTerminal(seen.decode(errors="replace"), first_s, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            if not first_s and piece.strip():
                first_s = time.monotonic() - began
            seen += piece
            for text in [text for text in keys if text.encode() in seen]:
                os.write(terminal, keys.pop(text))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return OnTerminal(seen.decode(errors="replace"), first_s, None)
    finally:
        os.close(terminal)
