"""A line on the terminal before a command's first output: what the command does, and since when. The first output removes the line.

A thread draws it, because it is on the screen while modules load. Imports the standard library alone, because it starts before them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

_DELAY_S = 0.1  # a command that is ready sooner shows nothing
_REDRAW_S = 0.1
_SILENT = {"-h", "--help", "--help-all", "--version", "--show-completion", "--install-completion"}


class _WaitingLine:
    """At most one line, drawn at the bottom of the terminal on stderr."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may write while the line is being removed
        self._stop = threading.Event()
        self._text, self._since, self._drawn = "", 0.0, False

    def show(self, text: str) -> None:
        """Show `text`, with the seconds since this call."""
        if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or os.environ.get("RANK", "0") != "0":
            return
        self.remove()
        self._text, self._since, self._stop = text, time.monotonic(), threading.Event()
        with suppress(RuntimeError):  # no room for a thread: then without the line
            threading.Thread(target=self._draw_until, args=(self._stop,), daemon=True).start()

    def remove(self) -> None:
        """Remove the line, if there is one."""
        self._stop.set()
        with self._lock:
            if self._drawn:
                self._drawn = False
                _write("\r\x1b[K")

    def _draw_until(self, stop: threading.Event) -> None:
        wait, drawn = _DELAY_S, ""
        while not stop.wait(wait):
            wait, line = _REDRAW_S, self._line()
            with self._lock:
                if stop.is_set():
                    return
                self._drawn = True
                if line != drawn:
                    _write(f"\r\x1b[2m{line}\x1b[0m\x1b[K")
            drawn = line

    def _line(self) -> str:
        passed = time.monotonic() - self._since
        text = "loading PyTorch" if _is_being_imported("torch") else self._text
        line = f"{text} …" + (f" {passed:.0f} s" if passed >= 1 else "")
        try:
            return line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]
        except OSError:
            return line


def _is_being_imported(module: str) -> bool:
    return getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False) is True


def _write(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed
        os.write(sys.stderr.fileno(), text.encode())


_line = _WaitingLine()
show, remove = _line.show, _line.remove


def begin(arguments: Sequence[str]) -> None:
    """Show that the command starts, unless it answers at once."""
    answers_at_once = not arguments or arguments[0].startswith("-") or list(arguments) == ["runs"] or _SILENT & set(arguments)
    if not answers_at_once and "_MINIGPT_COMPLETE" not in os.environ:
        show(f"minigpt {arguments[0]}: starting")
