"""What a signal means while a model trains: the first asks to finish the step and save, a second stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

from minigpt_cli.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class StopSignals:
    """A `with` in which SIGINT, SIGTERM and SIGHUP are requests that `poll` answers. Before `wait_for_save` they end the work at once."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.number: int | None = None  # of the signal that came; a lost terminal counts as SIGTERM
        self._requested: int | None = None
        self._patient = False
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                if (number := getattr(signal, name, None)) is not None:
                    self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def wait_for_save(self) -> None:
        """From now on a first signal waits for the step and the save."""
        self._patient = True

    def poll(self) -> int | None:
        """The number of the signal that asked to stop, if any."""
        return self.number or self._requested

    def request(self, number: int) -> None:
        """Ask to stop as if this signal had come, though none did."""
        self._requested = number

    def _received(self, number: int, frame: FrameType | None) -> None:
        if lost_terminal := number == getattr(signal, "SIGHUP", None):
            _forget_terminal()
            number = signal.SIGTERM
        if not self._patient:
            raise Interrupted("interrupted before training began; nothing was left behind", number)
        if self.number is not None and not lost_terminal:
            raise Interrupted("stopped at once; the last save is intact", number)
        self.number = number
        if not self._quiet and not lost_terminal:
            os.write(2, b"\nFinishing the step and saving; once more to stop at once.\n")  # print may not be called in a handler


def _forget_terminal() -> None:
    """Writing to a terminal that is gone fails: write to nowhere instead."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
